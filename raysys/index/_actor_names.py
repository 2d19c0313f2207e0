"""Names of an index's actors, as the dashboard shows them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import ray
from ray.util import list_named_actors

from raysys.cluster import NAMESPACE

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_STOP_S = 5.0
_PREFIX = "index:"


def writer_name(index: str) -> str:
    """The actor that orders changes; the index itself, as others find it."""
    return f"{_PREFIX}{index}"


def replica_name(index: str, shard: int, replica: int) -> str:
    """An actor that holds a shard."""
    return f"{_PREFIX}{index}:{shard}.{replica}"


def actor(name: str) -> ActorHandle:
    """A running actor.

    Raises:
        ValueError: There is none.
    """
    return ray.get_actor(name, namespace=NAMESPACE)


def names() -> list[str]:
    """All actors of all indexes on the cluster."""
    found: list[dict[str, Any]] = list_named_actors(all_namespaces=True)
    return [
        one["name"]
        for one in found
        if one["namespace"] == NAMESPACE and one["name"].startswith(_PREFIX)
    ]


def of(index: str) -> list[str]:
    """The actors of an index that are there, the writer first."""
    mine = [name for name in names() if f"{name}:".startswith(f"{writer_name(index)}:")]
    return sorted(mine, key=len)


def indexes() -> list[str]:
    """Names of the indexes that run on the cluster."""
    return [name.removeprefix(_PREFIX) for name in names() if ":" not in name.removeprefix(_PREFIX)]


def end(index: str) -> None:
    """End all actors of an index, the writer first: a change that it has not logged is refused."""
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        # Killed in the middle of a record it might finish it after the next writer has started.
        ray.get(actor(writer_name(index)).stop.remote(), timeout=_STOP_S)
    for name in of(index):
        with contextlib.suppress(ValueError):  # it has just ended
            ray.kill(actor(name))
