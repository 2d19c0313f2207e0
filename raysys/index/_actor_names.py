"""Names of an index's actors, as the dashboard shows them, and the jobs that use an index."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import ray
from ray.util import list_named_actors

from raysys.cluster import NAMESPACE
from raysys.ray_internals import key_value, process

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_STOP_TIMEOUT_S = 5.0
_PREFIX = "index:"


def writer_name(index: str) -> str:
    """Name of the actor that orders changes."""
    return f"{_PREFIX}{index}"


def replica_name(index: str, shard: int, replica: int) -> str:
    """Name of a replica of a shard."""
    return f"{_PREFIX}{index}:{shard}.{replica}"


def actor(name: str) -> ActorHandle:
    """A running actor; a `ValueError` if no actor has the name."""
    return ray.get_actor(name, namespace=NAMESPACE)


def names() -> list[str]:
    """Names of all actors of all indexes on the cluster."""
    actors: list[dict[str, Any]] = list_named_actors(all_namespaces=True)
    own = [entry["name"] for entry in actors if entry["namespace"] == NAMESPACE]
    return [name for name in own if name.startswith(_PREFIX)]


def of(index: str) -> list[str]:
    """Names of the running actors of an index, the writer first."""
    writer = writer_name(index)
    return sorted([name for name in names() if f"{name}:".startswith(f"{writer}:")], key=len)


def indexes() -> list[str]:
    """Names of the indexes that run on the cluster."""
    return [name.removeprefix(_PREFIX) for name in names() if ":" not in name.removeprefix(_PREFIX)]


def add_user(index: str) -> None:
    """Record that this job uses an index."""
    key_value.put(_user_prefix(index) + _job().encode(), b"")


def other_users(index: str) -> set[str]:
    """Ids of other running jobs that use an index."""
    prefix = _user_prefix(index)
    jobs = {key.removeprefix(prefix).decode() for key in key_value.keys(prefix)}
    return jobs & process.live_jobs() - {_job()}


def end(index: str) -> None:
    """End all actors of an index, the writer first: unlogged changes are refused."""
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        # Killed within a write, it might complete the record after the next writer has started.
        ray.get(actor(writer_name(index)).stop.remote(), timeout=_STOP_TIMEOUT_S)
    for name in of(index):
        with contextlib.suppress(ValueError):  # it has just ended
            ray.kill(actor(name))
    key_value.delete(_user_prefix(index), by_prefix=True)


def _user_prefix(index: str) -> bytes:
    return f"index-user:{index}:".encode()


def _job() -> str:
    return str(ray.get_runtime_context().get_job_id())
