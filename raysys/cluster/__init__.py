"""The Ray cluster: connect to it, ask what it has, start an embedded one, submit jobs to it."""

from raysys.cluster._connection import (
    HEADROOM_CPUS,
    Resources,
    connect,
    require,
    resources,
    share,
)
from raysys.cluster._local import Head, enable_token_auth, start_local, stop_local
from raysys.cluster._process import raise_priority
from raysys.cluster._submission import submit

__all__ = [
    "HEADROOM_CPUS",
    "Head",
    "Resources",
    "connect",
    "enable_token_auth",
    "raise_priority",
    "require",
    "resources",
    "share",
    "start_local",
    "stop_local",
    "submit",
]
