"""`raysys doctor`: looks at a cluster from here and from its head, and runs the checks."""

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
from raysys.cluster._dashboard import Dashboard
from raysys.cluster._doctor_checks import Check
from raysys.cluster._jobs import Jobs
from raysys.cluster._machine_facts import Facts, collect, versions
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
    """All checks, in an order in which the first that fails explains the others.

    Args:
        url: The dashboard; None where there is no cluster, and this machine alone is looked at.
        head: The cluster's head, if it was started on this machine.
        storage: Where the probe's audit line goes.
        folder: An empty folder, that the probe's job is submitted from.
    """
    if url is None:
        yield _token(None)
        yield from _of_machine(collect(), store_bytes=None, gpus=0.0)
        return
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    remedy = (
        "start the cluster, or check RAY_ADDRESS and the way there (a firewall, a port-forward)"
    )
    reached = _answers(host, port)
    yield checks.check_port("dashboard", f"{host}:{port}", reached, remedy=remedy)
    if not reached:
        yield _token(None)
        return
    if head is not None:
        name, _, gcs = head.address.rpartition(":")
        yield checks.check_port(
            "GCS", head.address, _answers(name, int(gcs)),
            remedy="the head is broken: `raysys down`, then `raysys up`",
        )  # fmt: skip
    yield checks.check_authentication(_mode(url))
    refused, offset_s = _entry(url)
    yield _token(refused)
    yield checks.check_clock(offset_s)
    if refused is not None:
        return
    yield from _of_head(url, storage, folder)


def _of_head(url: str, storage: Storage, folder: Path) -> Iterator[Check]:
    """What the head says of itself."""
    dashboard = Dashboard(url)
    told = dashboard.get("/api/v0/cluster_metadata")["data"]
    there = {"python": told["pythonVersion"], "ray": told["rayVersion"]}
    nodes = dashboard.get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    heads = [node for node in nodes if node["is_head_node"] and node["state"] == "ALIVE"]
    has = heads[0]["resources_total"] if heads else {}
    try:
        facts = _probe(Jobs(url), storage, folder)
    except RaysysError as error:
        yield checks.check_versions(versions(), there)
        fact = f"a small job did not run on the head: {error}"
        remedy = "install raysys there (requirements.lock), and look into the dashboard's Jobs"
        yield Check("jobs", "fail", fact, remedy)
        return
    yield Check("jobs", "ok", "a small job ran on the head")
    yield checks.check_versions(versions(), {**there, "raysys": facts.versions["raysys"]})
    yield from _of_machine(facts, has.get("object_store_memory", 0.0), has.get("GPU", 0.0))


def _of_machine(facts: Facts, store_bytes: float | None, gpus: float) -> Iterator[Check]:
    if store_bytes is not None:
        yield checks.check_object_store(store_bytes, facts.shm_bytes, facts.memory_bytes)
    yield checks.check_disk(facts.disk_used)
    yield checks.check_gpus(facts.gpus_driver, facts.gpus_torch, gpus)
    yield checks.check_storage(facts.storage, facts.storage_error)
    yield checks.check_mlflow(facts.mlflow, facts.mlflow_error)


def _probe(jobs: Jobs, storage: Storage, folder: Path) -> Facts:
    """What a job on the head finds, with the environment that jobs from here have."""
    names = ("RAYSYS_STORAGE", "MLFLOW_TRACKING_URI")
    env = {name: os.environ[name] for name in names if name in os.environ}
    job = jobs.submit(_PROBE, working_dir=folder, storage=storage, name="doctor", env=env)
    deadline = time.monotonic() + _PROBE_TIMEOUT_S
    while not (known := jobs.status(job)).is_over:
        if time.monotonic() > deadline:
            raise RaysysError(f"{job} is still {known.status} after {_PROBE_TIMEOUT_S:g} s")
        time.sleep(0.2)
    lines = jobs.logs(job).splitlines()
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError, TypeError):
            return Facts(**json.loads(line))
    raise RaysysError(f"{job} ended as {known.status}: {(lines or [known.message])[-1]}")


def _token(refused: int | None) -> Check:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return checks.check_token("RAY_AUTH_TOKEN", None, refused)
    path = token_path()
    if not path.is_file():
        return checks.check_token("", None, refused)
    return checks.check_token(str(path), path.stat().st_mode, refused)


def _entry(url: str) -> tuple[int | None, float]:
    """The status with which our token is turned away, if it is, and the cluster's clock."""
    from raysys.cluster._dashboard import token_header

    request = urllib.request.Request(f"{url}/api/version", headers=token_header())
    asked, refused = time.time(), None
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            headers: Any = reply.headers
    except urllib.error.HTTPError as error:
        headers, refused = error.headers, error.code
    answered = time.time()
    # The header has whole seconds, so half a second is added.
    there = parsedate_to_datetime(headers["Date"]).timestamp() + 0.5
    return refused, there - (asked + answered) / 2


def _mode(url: str) -> str:
    """How the cluster authenticates; it says so to everyone."""
    try:
        with urllib.request.urlopen(f"{url}/api/authentication_mode", timeout=20) as reply:
            return str(json.load(reply)["authentication_mode"])
    except (OSError, ValueError, KeyError) as error:
        return f"unknown ({error})"


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
