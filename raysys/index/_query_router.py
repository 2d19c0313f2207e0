"""Asking every shard, by whichever of its replicas answers."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError

from raysys.cluster import task_error_cause
from raysys.errors import UnavailableError
from raysys.index._local_socket import Channel
from raysys.index._shard import SilentError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ray import ObjectRef
    from ray.actor import ActorHandle

PROBES = "probes"  # of the threads of a replica
_POLL_S = 0.02
# Ray tells of a death a second or two later; a process that answers no probe is not waited for.
_PATIENCE_S, _PROBE_S = 0.25, 0.5
_NO_CHANNEL_S = 1.0


class Readers:
    """The replicas of an index as one process sees them.

    A replica that fails a call is left alone until it answers a probe; its calls go to another.
    """

    def __init__(self, index: str, replicas: Mapping[int, list[ActorHandle]]) -> None:
        """Take the handles of each shard's replicas."""
        self._index, self._replicas = index, replicas
        self._probes: dict[ActorHandle, ObjectRef] = {}
        self._ended: set[ActorHandle] = set()
        # Of replicas on this node: where they listen, and connections that no thread uses now.
        self._addresses: dict[ActorHandle, str | None] = {}
        self._channels: dict[ActorHandle, list[Channel]] = {}
        self._no_channel_until: dict[ActorHandle, float] = {}

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
            partial: Leave such shards out, after less than a second; else they are waited for.

        Raises:
            UnavailableError: A shard did not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        missing = set(self._replicas if shards is None else shards)
        answers: dict[int, Any] = {}
        silent: set[ActorHandle] = set()
        while True:
            calls = {}
            for shard in sorted(missing):
                handle = self._choose(shard, silent)
                if handle is not None and handle in silent:  # as are all others of the shard
                    calls[shard] = handle, handle.anyhow.remote(method, *args)
                elif handle is not None:
                    channel = self._channel(handle, *args) if method == "query" else None
                    calls[shard] = handle, channel or getattr(handle, method).remote(*args)
            for shard, (handle, call) in calls.items():
                hurry = partial or len(self._replicas[shard]) > 1
                try:
                    answers[shard] = self._answer(handle, call, deadline, hurry)
                    missing.discard(shard)
                except SilentError:
                    silent.add(handle)
                except (RayActorError, GetTimeoutError, UnavailableError) as error:
                    self._note(handle, error)
                except OSError:
                    self._give_up_channels(handle)  # and ask by Ray's call, which tells more
                except RayTaskError as error:
                    cause = task_error_cause(error)
                    if isinstance(cause, SilentError):
                        silent.add(handle)
                        continue
                    if isinstance(cause, UnavailableError):
                        self._note(handle, error)
                        continue
                    for _, other in calls.values():  # else Ray prints what they failed with
                        if not isinstance(other, Channel):
                            with contextlib.suppress(RayError):
                                ray.get(other, timeout=_PROBE_S)
                    raise cause from None  # what the shard itself said
            if not missing:
                return answers
            if partial and not any(self._choose(shard) for shard in missing):
                return answers
            if any(self._ended.issuperset(self._replicas[shard]) for shard in missing):
                raise UnavailableError(
                    f"the actors of index {self._index!r} have ended: it was closed, or built or "
                    "restored anew. VectorIndex.connect finds the one that runs now"
                )
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"index {self._index!r}: shard {sorted(missing)} of "
                    f"{sorted(self._replicas)} has not answered within {timeout_s:g} s. It is "
                    "restored by itself; ask again, or ask with partial=True for what the others "
                    "hold"
                )
            if len(calls) < len(missing):
                time.sleep(_POLL_S)

    def _channel(self, handle: ActorHandle, question: bytes) -> Channel | None:
        """A connection over which the question has been sent, to a replica on this node."""
        if time.monotonic() < self._no_channel_until.get(handle, 0.0):
            return None
        try:
            if handle not in self._addresses:
                self._addresses[handle] = self._address(handle)
            address = self._addresses[handle]
            if address is None:
                return None
            try:
                channel = self._channels.setdefault(handle, []).pop()
            except IndexError:
                channel = Channel(address)
            channel.send(question)
        except (OSError, RayError):
            self._give_up_channels(handle)
            return None
        return channel

    def _address(self, handle: ActorHandle) -> str | None:
        node, address = ray.get(handle.address.remote(), timeout=_PROBE_S)
        return address if node == ray.get_runtime_context().get_node_id() else None

    def _give_up_channels(self, handle: ActorHandle) -> None:
        """Ask a replica by Ray's calls for a moment, then look where it listens now."""
        self._no_channel_until[handle] = time.monotonic() + _NO_CHANNEL_S
        self._addresses.pop(handle, None)
        for channel in self._channels.pop(handle, []):
            channel.close()

    def _answer_of(
        self, handle: ActorHandle, channel: Channel, deadline: float, hurry: bool
    ) -> bytes:
        """Like `_answer`, over a channel.

        Raises:
            OSError: It has ended, or does not answer.
        """
        try:
            while True:
                left = deadline - time.monotonic()
                if channel.is_ready(min(left, _PATIENCE_S) if hurry else left):
                    break
                if not hurry or left <= _PATIENCE_S:
                    raise TimeoutError
                probe = _probe(handle)
                if not ray.wait([probe], timeout=_PROBE_S)[0] and not channel.is_ready(0):
                    self._probes[handle] = probe
                    raise TimeoutError
            answer = channel.receive()
        except OSError:
            channel.close()
            raise
        self._channels.setdefault(handle, []).append(channel)
        return answer

    def _answer(
        self, handle: ActorHandle, call: ObjectRef | Channel, deadline: float, hurry: bool
    ) -> Any:
        """What a replica answers; in a hurry it is waited for only while it answers probes."""
        if isinstance(call, Channel):
            return self._answer_of(handle, call, deadline, hurry)
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return ray.get(call, timeout=min(left, _PATIENCE_S) if hurry else left)
            except GetTimeoutError:
                if not hurry or left <= _PATIENCE_S:
                    raise
                probe = _probe(handle)
                if not ray.wait([probe, call], timeout=_PROBE_S)[0]:
                    self._probes[handle] = probe
                    raise

    def _note(self, handle: ActorHandle, error: Exception) -> None:
        """Leave a replica alone that failed, until it answers a probe."""
        if isinstance(error, ActorDiedError):  # Ray will not restart it
            self._ended.add(handle)
        self._probes[handle] = _probe(handle)

    def _choose(self, shard: int, last: Collection[ActorHandle] = ()) -> ActorHandle | None:
        """A replica that has not failed since it last answered; of some only if no other is."""
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
                    self._note(handle, error)
                else:
                    self._probes.pop(handle, None)  # unless another thread has seen it
                    return handle
        return None


def _probe(handle: ActorHandle) -> ObjectRef:
    """Ask a replica for a sign of life, which does not wait behind queries."""
    return handle.status.options(concurrency_group=PROBES).remote()
