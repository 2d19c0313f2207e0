"""A cluster that grows and shrinks, on one machine: Ray's autoscaler over its fake provider.

The nodes are Ray's own processes; what is pretended is only that each has a machine, and GPUs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

# What Ray's fake provider calls the head and its type.
_HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
_HEAD_TYPE = "ray.head.default"
_LABEL = "raysys.test/type"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.2


@dataclass(frozen=True)
class NodeType:
    """A kind of worker node.

    Attributes:
        cpus: Logical CPUs of a node.
        gpus: GPUs that a node says it has.
        most: Nodes of the kind at most.
        resources: Of a node, besides.
    """

    cpus: float
    gpus: float = 0.0
    most: int = 4
    resources: Mapping[str, float] = field(default_factory=dict)


class AutoscalingCluster:
    """A head without CPUs and workers that come when they are asked for and go when they idle.

    Example:
        >>> with AutoscalingCluster({"cpu": NodeType(2)}) as cluster:  # doctest: +SKIP
        ...     ray.init(cluster.address)
    """

    def __init__(
        self,
        types: Mapping[str, NodeType],
        *,
        idle_timeout_s: float = 20.0,
        object_store_bytes: int = 256 << 20,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the cluster; `start` or a `with` block starts it.

        Args:
            types: Of worker nodes, by name; all scale from zero.
            idle_timeout_s: That a node stays idle before it goes; below some ten seconds it goes
                while a task starts on it.
            object_store_bytes: Of each node.
            environment: Variables of all of its processes, on top of this process's.
        """
        from ray.util import get_node_ip_address

        self._types, self.idle_timeout_s = dict(types), idle_timeout_s
        self._store_bytes = object_store_bytes
        self._environment = dict(environment or {})
        self._port = _free_port()
        # Not loopback: Ray's clients turn that into the machine's own address.
        self.address = f"{get_node_ip_address()}:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> AutoscalingCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def config(self) -> dict[str, Any]:
        """The cluster's YAML; Ray wants every key of it, though the provider uses few."""
        types: dict[str, Any] = {
            name: {
                "resources": {
                    "CPU": kind.cpus,
                    **({"GPU": kind.gpus} if kind.gpus else {}),
                    "object_store_memory": self._store_bytes,
                    **kind.resources,
                },
                "labels": {_LABEL: name},
                "node_config": {},
                "min_workers": 0,
                "max_workers": kind.most,
            }
            for name, kind in self._types.items()
        }
        head = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
        lists = (
            "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands",
            "setup_commands", "head_setup_commands", "worker_setup_commands",
            "head_start_ray_commands", "worker_start_ray_commands",
        )  # fmt: skip
        return {
            "cluster_name": "fake_multinode",
            "max_workers": sum(kind.most for kind in self._types.values()),
            "upscaling_speed": 10.0,
            "idle_timeout_minutes": self.idle_timeout_s / 60,
            "provider": {
                # By its module: by its name, Ray's second autoscaler looks for an example that the
                # package lacks.
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider."
                "FakeMultiNodeProvider",
                "head_node_id": _HEAD_ID,
                "gcs_address": self.address,
                "launch_multiple": True,
                # All nodes have this machine's address.
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {_HEAD_TYPE: head, **types},
            "head_node_type": _HEAD_TYPE,
            "auth": {"ssh_user": "ray"},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in lists},
        }

    def start(self) -> None:
        """Start the head and wait until it answers.

        Raises:
            RuntimeError: It did not come up; what it said is in the message.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="raysys-fake-"))
        file = self._folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        log = self._folder / "head.log"
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            f"--autoscaling-config={file}", f"--temp-dir={self._folder}",
            f"--port={self._port}", "--num-cpus=0", "--num-gpus=0",
            f"--object-store-memory={self._store_bytes}", "--include-dashboard=false",
            f"--ray-client-server-port={_free_port()}", "--min-worker-port=0",
            "--max-worker-port=0", f"--dashboard-agent-listen-port={_free_port()}",
            "--disable-usage-stats",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
            # `ray up` and KubeRay use the second autoscaler too; it knows nodes by this number.
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
            "RAY_NODE_TYPE_NAME": _HEAD_TYPE,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            # What this process speaks; left out, a head takes up a token that lies about.
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
            **self._environment,
        }
        environment.pop("RAY_ADDRESS", None)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + _START_TIMEOUT_S
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"the head of the fake cluster did not come up: {said}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every process of the cluster, by the tree that this process started."""
        if self._process is None:
            return
        ours = {one.pid: one for one in self._tree()}
        self._process.terminate()  # the head ends its own; fake nodes are its monitor's
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline and any(map(_is_alive, ours.values())):
            time.sleep(_POLL_S)
            for one in list(ours.values()):
                ours.update({child.pid: child for child in _children(one)})
            if self._process.poll() is not None:
                break
        for one in ours.values():
            if _is_alive(one):
                one.kill()
        psutil.wait_procs(list(ours.values()), timeout=_STOP_TIMEOUT_S)
        self._process.wait()
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def nodes(self) -> Counter[str]:
        """Living worker nodes by type, as the connected driver's Ray sees them."""
        import ray

        labels = [node["Labels"] for node in ray.nodes() if node["Alive"]]
        return Counter(one[_LABEL] for one in labels if _LABEL in one)

    def wait_for(self, is_so: Callable[[Counter[str]], bool], *, timeout_s: float = 120.0) -> float:
        """Wait until the worker nodes are so; return the seconds that it took.

        Raises:
            TimeoutError: They are not.
        """
        started = time.monotonic()
        while not is_so(found := self.nodes()):
            if time.monotonic() - started > timeout_s:
                raise TimeoutError(f"not so after {timeout_s:g} s: {dict(found)} {self.activity()}")
            time.sleep(_POLL_S)
        return time.monotonic() - started

    def activity(self) -> dict[str, list[str]]:
        """What keeps each node busy, as the autoscaler is told; for one that does not go."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(self.address)
        return {
            node.node_id[-5:]: list(node.node_activity or [])
            for node in [*status.active_nodes, *status.idle_nodes]
        }

    def log(self) -> str:
        """What the autoscaler wrote."""
        logs = self._folder.glob("session_latest/logs/monitor*")
        return "\n".join(file.read_text(errors="replace") for file in logs)

    def _tree(self) -> list[psutil.Process]:
        assert self._process
        try:
            root = psutil.Process(self._process.pid)
        except psutil.NoSuchProcess:
            return []
        return [root, *_children(root)]


def _end_with_parent() -> None:
    """In the child: a benchmark that is killed leaves no cluster; nodes end without their head."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.create_server(("", 0)) as one:
        return int(one.getsockname()[1])
