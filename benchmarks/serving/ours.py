"""Our side of the comparison: the yardstick and MiniLM as graphs, on a Ray cluster of their own."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import tempfile
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np  # noqa: TC002 - nodes say what they take
import psutil

from benchmarks.serving import yardstick
from raysys import cluster, serve
from raysys.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_ROW = serve.Array("float64", (yardstick.FEATURES,))
_SCALED = serve.Array("float32", (yardstick.FEATURES,))
_VALUE = serve.Array("float32")
_MINILM_WIDTH = 384


class Scale(yardstick.Scale):
    """The yardstick's, with the types of its edges."""

    def __call__(self, x: Annotated[np.ndarray, _ROW]) -> Annotated[np.ndarray, _SCALED]:
        """Rows `(n, 64)` float64 -> `(n, 64)` float32."""
        return super().__call__(x)


def y(mlp: np.ndarray, trees: np.ndarray) -> Annotated[np.ndarray, _VALUE]:
    """The weighted mean `(n,)`."""
    return yardstick.mean(mlp, trees)


def yardstick_graph(folder: Path, dtype: str = "float64") -> serve.Graph:
    """The yardstick over models that `yardstick.train` wrote."""
    return serve.Graph(
        inputs={"x": serve.Array(dtype, (yardstick.FEATURES,))},
        nodes={
            "scaled": serve.LazyObject(
                Scale if dtype == "float64" else yardstick.Scale, str(folder)
            ),
            "mlp": serve.LazyObject(yardstick.Mlp, str(folder)),
            "trees": serve.LazyObject(yardstick.Trees, str(folder)),
            "y": y,
        },
        output="y",
    )


def minilm_graph() -> serve.Graph:
    """Texts to embeddings `(n, 384)`."""
    from benchmarks.serving.minilm import MiniLM

    return serve.Graph(
        inputs={"text": serve.Array("str")},
        nodes={"vector": serve.LazyObject(MiniLM)},
        output="vector",
    )


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """A Ray cluster on this machine with the serving layer; both end with the block."""
    import ray

    cluster.connect()
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


@functools.cache
def port() -> int:
    """A free port for the gateway, the same in the whole run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deploy(
    name: str, graph: serve.Graph | Mapping[str, serve.Graph], **options: Any
) -> serve.Endpoint:
    """Deploy behind this run's gateway."""
    gateway = serve.GatewayOptions(port=port(), storage=gateway_storage())
    return serve.deploy(name, graph, gateway=gateway, **options)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """The storage root of this run's gateway, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="raysys-", ignore_cleanup_errors=True)


def gateway_storage() -> Storage:
    """Where this run's gateway looks for keys."""
    return Storage(_folder().name)


def entry_pids(application: str) -> list[int]:
    """Processes of an application's replicas."""
    from ray.util.state import list_actors

    alive = list_actors(_address(), filters=[("state", "=", "ALIVE")])
    ours = [a for a in alive if a.class_name.startswith(f"ServeReplica:{application}-v")]
    return sorted(actor.pid for actor in ours)


def process_pids(application: str) -> list[int]:
    """Processes of an application's replicas, and those that run their nodes."""
    from ray.util.state import list_actors

    alive = list_actors(
        _address(), filters=[("state", "=", "ALIVE"), ("class_name", "=", "GraphWorker")]
    )
    workers = [actor.pid for actor in alive if f"::{application}-v" in actor.name]
    return sorted([*entry_pids(application), *workers])


def gateway_pids() -> list[int]:
    """The gateway's process, its supervisors of HAProxy and HAProxy's."""
    from ray.util.state import list_actors

    alive = list_actors(
        _address(), filters=[("state", "=", "ALIVE"), ("class_name", "=", "Gateway")]
    )
    family = [
        process.pid
        for supervisor in supervisors()
        for process in (supervisor, *supervisor.children(recursive=True))
    ]
    return sorted({*(actor.pid for actor in alive), *family})


def supervisors() -> list[psutil.Process]:
    """Those that hold the port of this run's gateway; they are nobody's children."""
    matching = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("_supervisor.py") for word in words) and str(port()) in words:
            matching.append(process)
    return matching


def kill_one(application: str, number: int) -> None:
    """SIGKILL for one of the replicas, each in turn."""
    pids = entry_pids(application)
    if pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[number % len(pids)], signal.SIGKILL)


def _address() -> str:
    """This cluster's: another may run on this machine."""
    import ray

    return str(ray.get_runtime_context().gcs_address)
