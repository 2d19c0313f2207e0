"""Routing of requests to the replicas of each shard."""

from __future__ import annotations

import contextlib
import pickle
import random
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError

from raysys.cluster import Channel, task_error_cause
from raysys.errors import UnavailableError
from raysys.index._query_result import QueryResult, merge, padding
from raysys.index._replica import StaleReplicaError
from raysys.index._slot_rows import VersionExpiredError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import numpy as np
    from ray import ObjectRef
    from ray.actor import ActorHandle

PROBES = "probes"  # concurrency group of a replica
_POLL_S = 0.02
# Ray reports a death a second or two later; a process that does not answer a probe is skipped.
_PATIENCE_S, _PROBE_TIMEOUT_S = 0.25, 0.5
_NO_CHANNEL_S = 1.0
_VERSION_ATTEMPTS = 10


class QueryRouter:
    """The replicas of an index from the view of a process.

    A replica that fails a call is avoided until it answers a probe; its calls go to another.
    """

    def __init__(self, index: str, replicas: Mapping[int, list[ActorHandle]]) -> None:
        self._index, self._replicas = index, replicas
        self._probes: dict[ActorHandle, ObjectRef] = {}
        self._ended: set[ActorHandle] = set()
        # Replicas on this node: addresses of their sockets, and idle connections.
        self._addresses: dict[ActorHandle, str | None] = {}
        self._channels: dict[ActorHandle, list[Channel]] = {}
        self._no_channel_until: dict[ActorHandle, float] = {}

    def query(
        self, matrix: np.ndarray, k: int, ef_search: int | None,
        filters: Sequence[str | None] | None, allow_partial: bool, timeout_s: float,
    ) -> QueryResult:  # fmt: skip
        """The k nearest of all shards, as of the same version.

        A batch of changes reaches one shard before another: all answer as of the lowest version,
        which has reached them all.
        """
        stale = set[int]()

        def ask(as_of: int | None = None, **options: Any) -> dict[int, Any]:
            request = pickle.dumps((matrix, k, ef_search, filters, as_of), protocol=5)
            options |= {"timeout_s": timeout_s, "stale_shards": stale}
            answers = self.ask("query", request, **options)
            return {shard: pickle.loads(answer) for shard, answer in answers.items()}

        for _ in range(_VERSION_ATTEMPTS):
            try:
                answers = ask(allow_partial=allow_partial)
                oldest = min((version for version, _, _ in answers.values()), default=0)
                ahead = [shard for shard, answer in answers.items() if answer[0] > oldest]
                if ahead:
                    answers |= ask(oldest, shards=ahead)
            except VersionExpiredError:  # it took longer than a shard remembers
                continue
            if any(version != oldest for version, _, _ in answers.values()):
                continue
            missing = tuple(sorted(set(self._replicas) - set(answers)))
            if not answers:
                answers[0] = 0, *padding(len(matrix), k)
            parts = [part[1:] for _, part in sorted(answers.items())]
            return QueryResult(*merge(parts, k), missing, tuple(sorted(stale)))
        raise UnavailableError(
            f"index {self._index!r}: the shards did not agree on a version in "
            f"{_VERSION_ATTEMPTS} attempts; retry, with fewer vectors per call"
        )

    def ask(
        self, method: str, *args: Any, shards: Iterable[int] | None = None, timeout_s: float,
        allow_partial: bool = False, stale_shards: set[int] | None = None,
    ) -> dict[int, Any]:  # fmt: skip
        """The answer of each shard, all by default, to "query" or a reading method of `Shard`.

        A shard without a replica that answers is waited for until `timeout_s`, which raises
        `UnavailableError`; or, to `allow_partial`, left out after less than a second. Shards whose
        answer may lack the last changes are added to `stale_shards`.
        """
        deadline = time.monotonic() + timeout_s
        missing = set(self._replicas if shards is None else shards)
        answers: dict[int, Any] = {}
        stale: set[ActorHandle] = set()
        while True:
            calls = {}
            for shard in sorted(missing):
                handle = self._choose(shard, stale)
                if handle is not None:
                    # A stale replica is chosen only where all replicas of the shard are.
                    calls[shard] = handle, self._call(handle, handle in stale, method, *args)
            for shard, (handle, call) in calls.items():
                hurry = allow_partial or len(self._replicas[shard]) > 1
                try:
                    answers[shard] = self._answer(handle, call, deadline, hurry)
                    missing.discard(shard)
                    if handle in stale and stale_shards is not None:
                        stale_shards.add(shard)
                except StaleReplicaError:
                    stale.add(handle)
                except (RayActorError, GetTimeoutError, UnavailableError) as error:
                    self._avoid(handle, error)
                except OSError:
                    if isinstance(call, Channel):
                        call.close()
                    self._drop_channels(handle)  # the Ray call that follows tells the cause
                except Exception:  # of the shard itself
                    for _, pending in calls.values():  # else Ray prints their errors
                        if not isinstance(pending, Channel):
                            with contextlib.suppress(RayError):
                                ray.get(pending, timeout=_PROBE_TIMEOUT_S)
                    raise
            if not missing:
                return answers
            if allow_partial and not any(self._choose(shard) for shard in missing):
                return answers
            if any(self._ended.issuperset(self._replicas[shard]) for shard in missing):
                raise UnavailableError(
                    f"the actors of index {self._index!r} have ended: it was closed, rebuilt or "
                    "restored. Reconnect with VectorIndex.connect"
                )
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"index {self._index!r}: shard {sorted(missing)} of "
                    f"{sorted(self._replicas)} did not answer within {timeout_s:g} s. It restarts "
                    "automatically; retry, or query with allow_partial=True for the rows of the "
                    "other shards"
                )
            if len(calls) < len(missing):
                time.sleep(_POLL_S)

    def _call(
        self, handle: ActorHandle, is_stale: bool, method: str, *args: Any
    ) -> ObjectRef | Channel:
        options = {"allow_stale": True} if is_stale else {}
        if method != "query":
            return handle.read.remote(method, *args, **options)
        channel = None if is_stale else self._channel(handle, *args)
        return channel or handle.query.remote(*args, **options)

    def _channel(self, handle: ActorHandle, request: bytes) -> Channel | None:
        """A connection to a replica on this node over which the request has been sent."""
        if time.monotonic() < self._no_channel_until.get(handle, 0.0):
            return None
        try:
            if handle not in self._addresses:
                node, address = ray.get(handle.address.remote(), timeout=_PROBE_TIMEOUT_S)
                is_local = node == ray.get_runtime_context().get_node_id()
                self._addresses[handle] = address if is_local else None
            address = self._addresses[handle]
            if address is None:
                return None
            try:
                channel = self._channels.setdefault(handle, []).pop()
            except IndexError:
                channel = Channel(address)
            channel.send(request)
        except (OSError, RayError):
            self._drop_channels(handle)
            return None
        return channel

    def _drop_channels(self, handle: ActorHandle) -> None:
        """Use Ray calls to a replica for a moment, then look up its address again."""
        self._no_channel_until[handle] = time.monotonic() + _NO_CHANNEL_S
        self._addresses.pop(handle, None)
        for channel in self._channels.pop(handle, []):
            channel.close()

    def _answer(
        self, handle: ActorHandle, call: ObjectRef | Channel, deadline: float, hurry: bool
    ) -> Any:
        """The answer of a replica; in a hurry, wait only as long as it answers probes.

        Of a replica that does not answer, an `OSError` or, from a Ray call, `GetTimeoutError`.
        """
        while True:
            left = max(0.0, deadline - time.monotonic())
            timeout_s = min(left, _PATIENCE_S) if hurry else left
            try:
                if not isinstance(call, Channel):
                    return ray.get(call, timeout=timeout_s)
                answer = call.receive(timeout_s)
                self._channels.setdefault(handle, []).append(call)
                return answer
            except RayTaskError as error:
                raise task_error_cause(error) from None
            except TimeoutError:  # of either kind
                if not hurry or left <= _PATIENCE_S:
                    raise
                probe, is_channel = _probe(handle), isinstance(call, Channel)
                answered, _ = ray.wait([probe] if is_channel else [probe, call],
                                       timeout=_PROBE_TIMEOUT_S)  # fmt: skip
                if not answered and not (is_channel and call.is_ready(0)):
                    self._probes[handle] = probe
                    raise

    def _avoid(self, handle: ActorHandle, error: Exception) -> None:
        """Avoid a replica that failed, until it answers a probe."""
        if isinstance(error, ActorDiedError):  # Ray will not restart it
            self._ended.add(handle)
        self._probes[handle] = _probe(handle)

    def _choose(self, shard: int, last: Collection[ActorHandle] = ()) -> ActorHandle | None:
        """A replica that has not failed since its last answer; those of `last` only at last."""
        handles = self._replicas[shard]
        if len(handles) > 1:
            handles = random.sample(handles, len(handles))
            handles.sort(key=last.__contains__)
        for handle in handles:
            probe = self._probes.get(handle)
            if probe is None:
                return handle
            if ray.wait([probe], timeout=0)[0]:
                try:
                    ray.get(probe)
                except RayError as error:
                    self._avoid(handle, error)
                else:
                    self._probes.pop(handle, None)  # unless another thread has done so
                    return handle
        return None


def _probe(handle: ActorHandle) -> ObjectRef:
    """Request a sign of life from a replica, which does not wait behind queries."""
    return handle.status.options(concurrency_group=PROBES).remote()
