"""The Ray cluster: connection, resources, a local head, submitted jobs and diagnosis."""

from raysys.cluster._application_log import WORKER_NAME, application_log
from raysys.cluster._certificates import make_certificates
from raysys.cluster._connection import ON_DEMAND_ONLY, connect, raise_priority
from raysys.cluster._dashboard import Dashboard, find_dashboard, submission_dashboard
from raysys.cluster._demand import check_demand, declared_demand
from raysys.cluster._doctor import examine
from raysys.cluster._error_text import error_line, error_traceback, task_error_cause
from raysys.cluster._job_folder import check_names
from raysys.cluster._jobs import Jobs, SubmittedJob
from raysys.cluster._local_head import Head, local_head, start_local, stop_local
from raysys.cluster._local_socket import AsyncChannel, Channel, check_user, listen
from raysys.cluster._resources import (
    HEADROOM_CPUS,
    Resources,
    can_grow,
    limits,
    require,
    resources,
    share,
)
from raysys.cluster._runtime_env import environment, runtime_env
from raysys.cluster._status import status_lines
from raysys.cluster._token_auth import enable_token_auth
from raysys.cluster.config._check import check_config
from raysys.ray_internals.key_value import NAMESPACE

__all__ = [
    "HEADROOM_CPUS",
    "NAMESPACE",
    "ON_DEMAND_ONLY",
    "WORKER_NAME",
    "AsyncChannel",
    "Channel",
    "Dashboard",
    "Head",
    "Jobs",
    "Resources",
    "SubmittedJob",
    "application_log",
    "can_grow",
    "check_config",
    "check_demand",
    "check_names",
    "check_user",
    "connect",
    "declared_demand",
    "enable_token_auth",
    "environment",
    "error_line",
    "error_traceback",
    "examine",
    "find_dashboard",
    "limits",
    "listen",
    "local_head",
    "make_certificates",
    "raise_priority",
    "require",
    "resources",
    "runtime_env",
    "share",
    "start_local",
    "status_lines",
    "stop_local",
    "submission_dashboard",
    "task_error_cause",
]
