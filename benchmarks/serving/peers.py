"""The peers: each a context manager that runs one server of the yardstick in its own processes.

Example:
    >>> with fastapi(folder) as peer:  # doctest: +SKIP
    ...     load = run_load(peer.url, [peer.body(row) for row in rows], key=peer.key)
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MLSERVER = ("mlserver==1.7.1", "uvloop==0.21.0")  # its model processes fail with newer uvloops
START_S = 120.0
STOP_S = 30.0


@dataclass(frozen=True)
class Peer:
    """A server that answers.

    Attributes:
        name: For tables.
        url: Where requests are POSTed.
        v2: Whether it speaks the Open Inference Protocol (V2) in place of plain JSON.
    """

    name: str
    url: str
    v2: bool = False

    @property
    def key(self) -> str:
        """What a right answer has at its top level."""
        return "outputs" if self.v2 else "y"

    def body(self, row: np.ndarray) -> bytes:
        """The request for one row `(64,)`."""
        values = row.tolist()
        if not self.v2:
            return json.dumps({"x": values}).encode()
        tensor = {"name": "x", "shape": [1, len(values)], "datatype": "FP64", "data": values}
        return json.dumps({"inputs": [tensor]}).encode()

    def ask(self, row: np.ndarray, timeout_s: float = 10.0) -> float:
        """The answer for one row `(64,)`, for checks."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, self.body(row), headers)
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            said = json.load(response)
        return float(said["outputs"][0]["data"][0] if self.v2 else said["y"])


@contextlib.contextmanager
def fastapi(folder: str | Path, processes: int = 1) -> Iterator[Peer]:
    """FastAPI on uvicorn (uvloop, httptools) with a hand-written micro-batcher.

    Args:
        folder: Where `yardstick.train` wrote the models.
        processes: Of uvicorn, each with models of its own.
    """
    port = _free_port()
    name = "FastAPI" if processes == 1 else f"FastAPI, {processes} processes"
    peer = Peer(name, f"http://127.0.0.1:{port}/")
    with tempfile.TemporaryDirectory() as ready:
        task = {"folder": str(folder), "port": port, "processes": processes, "ready": ready}
        with _running(peer, _program("_fastapi", task)):
            while len(list(Path(ready).iterdir())) < processes:
                time.sleep(0.05)
            yield peer


@contextlib.contextmanager
def litserve(
    folder: str | Path, *, batch_timeout_s: float = 0.0, workers: int = 1, api_servers: int = 2,
    fast_queue: bool = True,
) -> Iterator[Peer]:  # fmt: skip
    """LitServe; the defaults are the best settings found for 32 clients on two cores.

    Args:
        folder: Where `yardstick.train` wrote the models.
        batch_timeout_s: How long a batch waits to fill up.
        workers: Model processes.
        api_servers: HTTP processes.
        fast_queue: Answers come back over ZeroMQ.
    """
    port = _free_port()
    peer = Peer("LitServe", f"http://127.0.0.1:{port}/")
    task = {
        "folder": str(folder), "port": port, "batch_timeout_s": batch_timeout_s,
        "workers": workers, "api_servers": api_servers, "fast_queue": fast_queue,
    }  # fmt: skip
    with _running(peer, _program("_litserve", task)):
        yield peer


@contextlib.contextmanager
def mlserver(
    folder: str | Path, *, batch_time_s: float = 0.001, parallel_workers: int = 0
) -> Iterator[Peer]:
    """MLServer with adaptive batching; the defaults are the best settings found, as above.

    It needs older packages than Ray Serve, so it runs in an environment of its own, which is made
    in the user's cache folder the first time.

    Args:
        folder: Where `yardstick.train` wrote the models.
        batch_time_s: How long a batch waits to fill up.
        parallel_workers: Model processes; 0 runs the model in the server's.
    """
    python = _own_environment(*MLSERVER, f"numpy=={np.__version__}")
    port = _free_port()
    peer = Peer("MLServer", f"http://127.0.0.1:{port}/v2/models/yardstick/infer", v2=True)
    with tempfile.TemporaryDirectory() as place:
        server = {
            "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": _free_port(),
            "metrics_port": _free_port(), "metrics_endpoint": None, "gzip_enabled": False,
            "parallel_workers": parallel_workers, "metrics_dir": f"{place}/metrics",
            "environments_dir": f"{place}/environments",
        }  # fmt: skip
        model = {
            "name": "yardstick", "implementation": "benchmarks.serving._mlserver.Runtime",
            "max_batch_size": 64, "max_batch_time": batch_time_s,
            "parameters": {"uri": str(folder)},
        }  # fmt: skip
        Path(place, "settings.json").write_text(json.dumps(server))
        Path(place, "model-settings.json").write_text(json.dumps(model))
        command = [str(python.with_name("mlserver")), "start", place]
        with _running(peer, command):
            yield peer


@contextlib.contextmanager
def serve_by_hand(folder: str | Path, throughput: bool = False) -> Iterator[Peer]:
    """Ray Serve as users write it, on a Ray cluster of its own.

    Args:
        folder: Where `yardstick.train` wrote the models.
        throughput: With Ray's variable for throughput (no threads for user code and router, gRPC
            between deployments, no proxy on the way) and HAProxy in front.
    """
    port = _free_port()
    name = "Serve by hand" + (", throughput variables" if throughput else "")
    peer = Peer(name, f"http://127.0.0.1:{port}/")
    with tempfile.TemporaryDirectory(
        prefix="ray", ignore_cleanup_errors=True
    ) as temp:  # short: sockets are in it
        task = {"folder": str(folder), "port": port, "temp": temp}
        more = _throughput(temp) if throughput else None
        with _running(peer, _program("_serve_by_hand", task), more):
            yield peer


def _throughput(temp: str) -> dict[str, str]:
    """Ray Serve's variables for throughput, with HAProxy's files and ports kept apart."""
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{temp}/haproxy/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{temp}/haproxy/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"{temp}/haproxy",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{temp}/haproxy/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{temp}/haproxy/metrics.sock",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
    }


def _program(module: str, task: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{module}", json.dumps(task)]


@contextlib.contextmanager
def _running(
    peer: Peer, command: Sequence[str], more: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server until the end of the block; it answers when the block starts."""
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **(more or {})}
    env.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=root, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_it_answers(peer, process, log)
            yield
        finally:
            _stop(process)


def _wait_until_it_answers(peer: Peer, process: subprocess.Popen[bytes], log: Any) -> None:
    row = np.zeros(64)
    deadline = time.monotonic() + START_S
    while True:
        try:
            peer.ask(row)
            return
        except (OSError, ValueError, KeyError):
            if process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
        log.seek(0)
        said = log.read().decode(errors="replace")[-4000:]
        raise RuntimeError(f"{peer.name} does not answer at {peer.url}; it said:\n{said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process, then whatever of its group is left."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own_environment(*requirements: str) -> Path:
    """A Python with packages that cannot stand beside ours, made once and kept.

    What it lacks (torch, xgboost) it takes from this environment, so that models run on the very
    same builds everywhere.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "raysys" / ("bench-" + requirements[0].replace("==", "-"))
    python, ready = place / "bin" / "python", place / ".ready"
    wanted = "\n".join((*requirements, sysconfig.get_path("purelib")))
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        print(f"making {place} for {requirements[0]}, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
        # In its own folder and without our path, so that pip does not take us for installed there.
        done = subprocess.run(
            [*install, *requirements], cwd=place, env=clean, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{requirements[0]} cannot be installed:\n{done.stderr[-4000:]}")
        paths = {"base": str(place), "platbase": str(place)}
        packages = Path(sysconfig.get_path("purelib", vars=paths))
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        ready.write_text(wanted)
    return python
