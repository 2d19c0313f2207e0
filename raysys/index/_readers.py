"""Asking every shard, by whichever of its replicas answers."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from raysys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ray import ObjectRef
    from ray.actor import ActorHandle

_POLL_S = 0.02
_PATIENCE_S = 5.0


class Readers:
    """The replicas of an index as one process sees them.

    A replica that fails a call is left alone until it answers a probe; its calls go to another.
    """

    def __init__(self, index: str, replicas: Mapping[int, list[ActorHandle]]) -> None:
        """Take the handles of each shard's replicas."""
        self._index, self._replicas = index, replicas
        self._probes: dict[ActorHandle, ObjectRef] = {}

    def ask(
        self, method: str, *args: Any, shards: Iterable[int] | None = None, timeout_s: float,
        partial: bool = False,
    ) -> dict[int, Any]:  # fmt: skip
        """What each shard answers.

        Args:
            method: Of `Replica`.
            args: Of the call.
            shards: All by default.
            timeout_s: After which a shard without a replica that answers is given up.
            partial: Leave such shards out, at once; else they are waited for.

        Raises:
            UnavailableError: A shard did not answer in time.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        deadline = time.monotonic() + timeout_s
        missing = set(self._replicas if shards is None else shards)
        answers: dict[int, Any] = {}
        while True:
            calls = {}
            for shard in sorted(missing):
                handle = self._choose(shard)
                if handle is not None:
                    calls[shard] = handle, getattr(handle, method).remote(*args)
            for shard, (handle, call) in calls.items():
                others = len(self._replicas[shard]) > 1
                left = max(0.0, deadline - time.monotonic())
                try:
                    answers[shard] = ray.get(
                        call, timeout=min(left, _PATIENCE_S) if others else left
                    )
                    missing.discard(shard)
                except (RayActorError, GetTimeoutError):
                    # A call to an actor that restarts waits for it: as good a probe as any.
                    self._probes[handle] = handle.status.remote()
                except RayTaskError as error:
                    raise error.cause from None  # what the shard itself said
            if not missing:
                return answers
            if partial and not any(self._choose(shard) for shard in missing):
                return answers
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"index {self._index!r}: shard {sorted(missing)} of "
                    f"{sorted(self._replicas)} has not answered within {timeout_s:g} s. It is "
                    "restored by itself; ask again, or ask with partial=True for what the others "
                    "hold"
                )
            if len(calls) < len(missing):
                time.sleep(_POLL_S)

    def _choose(self, shard: int) -> ActorHandle | None:
        """A replica that has not failed since it last answered."""
        import ray
        from ray.exceptions import RayError

        handles = self._replicas[shard]
        for handle in random.sample(handles, len(handles)) if len(handles) > 1 else handles:
            probe = self._probes.get(handle)
            if probe is None:
                return handle
            if ray.wait([probe], timeout=0)[0]:
                try:
                    ray.get(probe)
                except RayError:
                    self._probes[handle] = handle.status.remote()
                else:
                    del self._probes[handle]
                    return handle
        return None
