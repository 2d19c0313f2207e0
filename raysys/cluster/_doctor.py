"""`raysys doctor`: checks of a cluster, from this machine and from the cluster's head."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from raysys.cluster import _doctor_checks as checks
from raysys.cluster._dashboard import Dashboard, token_header
from raysys.cluster._doctor_checks import Check
from raysys.cluster._jobs import Jobs
from raysys.cluster._machine_facts import Facts, collect, versions
from raysys.cluster._runtime_env import environment, runtime_env
from raysys.errors import RaysysError
from raysys.secrets import token_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from raysys.cluster._local_head import Head
    from raysys.storage import Storage

_PROBE = "python -m raysys.cluster._machine_facts"
_PROBE_TIMEOUT_S = 60.0


def examine(url: str | None, head: Head | None, storage: Storage, folder: Path) -> Iterator[Check]:
    """Results of all checks, ordered so that the first failure explains the following ones.

    Args:
        url: URL of the dashboard; None checks this machine alone.
        head: The cluster's head, if it runs on this machine.
        storage: Storage root of the audit log.
        folder: Empty working directory of the probe job.
    """
    if url is None:
        yield _token(None)
        yield from _machine_checks(collect(), store_bytes=None, gpus=0.0)
        return
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    remedy = "start the cluster, or check RAY_ADDRESS and the network (a firewall, a port-forward)"
    is_open = _is_open(host, port)
    yield checks.check_port("dashboard", f"{host}:{port}", is_open, remedy=remedy)
    if not is_open:
        yield _token(None)
        return
    if head is not None:
        name, _, gcs = head.address.rpartition(":")
        restart = "restart the head: `raysys down`, then `raysys up`"
        yield checks.check_port("GCS", head.address, _is_open(name, int(gcs)), remedy=restart)
    yield checks.check_authentication(_authentication_mode(url))
    error_status, offset_s = _request_version(url)
    yield _token(error_status)
    yield checks.check_clock(offset_s)
    if error_status is not None:
        return
    yield from _head_checks(url, storage, folder)


def _head_checks(url: str, storage: Storage, folder: Path) -> Iterator[Check]:
    """Checks by the dashboard's metadata and by a probe job on the head."""
    dashboard = Dashboard(url)
    metadata = dashboard.get("/api/v0/cluster_metadata")["data"]
    cluster = {"python": metadata["pythonVersion"], "ray": metadata["rayVersion"]}
    nodes = dashboard.get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    heads = [node for node in nodes if node["is_head_node"] and node["state"] == "ALIVE"]
    total = heads[0]["resources_total"] if heads else {}
    try:
        facts = _probe(Jobs(url), storage, folder)
    except RaysysError as error:
        yield checks.check_versions(versions(), cluster)
        remedy = "install raysys on the head (requirements.lock), and see Jobs in the dashboard"
        yield Check("jobs", "fail", f"the probe job failed on the head: {error}", remedy)
        return
    yield Check("jobs", "ok", "the probe job ran on the head")
    yield checks.check_versions(versions(), {**cluster, "raysys": facts.versions["raysys"]})
    yield from _machine_checks(facts, total.get("object_store_memory", 0.0), total.get("GPU", 0.0))


def _machine_checks(facts: Facts, store_bytes: float | None, gpus: float) -> Iterator[Check]:
    if store_bytes is not None:
        yield checks.check_object_store(store_bytes, facts.shm_bytes, facts.memory_bytes)
    yield checks.check_disk(facts.disk_used)
    yield checks.check_gpus(facts.gpus_driver, facts.gpus_torch, gpus)
    yield checks.check_storage(facts.storage, facts.storage_error)
    yield checks.check_mlflow(facts.mlflow, facts.mlflow_error)


def _probe(jobs: Jobs, storage: Storage, folder: Path) -> Facts:
    """Facts of the head, collected by a job with the environment of jobs from this machine."""
    env = environment(own_head=not os.environ.get("RAY_ADDRESS"))
    job = jobs.submit(_PROBE, runtime_env(folder, env), storage=storage, name="doctor")
    deadline = time.monotonic() + _PROBE_TIMEOUT_S
    while not (current := jobs.status(job)).is_over:
        if time.monotonic() > deadline:
            raise RaysysError(f"{job} is still {current.status} after {_PROBE_TIMEOUT_S:g} s")
        time.sleep(0.2)
    lines = jobs.logs(job).splitlines()
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError, TypeError):
            return Facts(**json.loads(line))
    raise RaysysError(f"{job} ended as {current.status}: {(lines or [current.message])[-1]}")


def _token(error_status: int | None) -> Check:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return checks.check_token("RAY_AUTH_TOKEN", None, error_status)
    if (path := token_path()).is_file():
        return checks.check_token(str(path), path.stat().st_mode, error_status)
    return checks.check_token("", None, error_status)


def _request_version(url: str) -> tuple[int | None, float]:
    """HTTP status if the cluster rejects the token, and the offset of its clock in seconds."""
    request = urllib.request.Request(f"{url}/api/version", headers=token_header())
    sent, error_status = time.time(), None
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            headers: Any = reply.headers
    except urllib.error.HTTPError as error:
        headers, error_status = error.headers, error.code
    received = time.time()
    # The header has whole seconds, so half a second is added.
    cluster_time = parsedate_to_datetime(headers["Date"]).timestamp() + 0.5
    return error_status, cluster_time - (sent + received) / 2


def _authentication_mode(url: str) -> str:
    """The cluster's authentication mode, which needs no token to read."""
    try:
        with urllib.request.urlopen(f"{url}/api/authentication_mode", timeout=20) as reply:
            return str(json.load(reply)["authentication_mode"])
    except (OSError, ValueError, KeyError) as error:
        return f"unknown ({error})"


def _is_open(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False
