"""Observers of Ray's deserialiser and pickler, patched in on the first use in a process."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from raysys.imports import lazy_import

serialization = lazy_import("ray._private.serialization")
cloudpickle = lazy_import("ray.cloudpickle")

ReadObserver = Callable[[list[Any], list[int]], None]
PickleObserver = Callable[[list[Any], int], None]

_read_observers: list[ReadObserver] = []
_pickle_observers: list[tuple[Callable[[Any], bool], PickleObserver]] = []
_pickling = threading.local()


def observe_reads(observer: ReadObserver) -> None:
    """Call a function with the values and sizes (bytes) of what this process deserialises."""
    _patch_deserialiser()
    _read_observers.append(observer)


def observe_pickling(selects: Callable[[Any], bool], observer: PickleObserver) -> None:
    """Call a function after each pickling, with the selected objects inside and the total bytes.

    `selects` is asked about each object, however deep, except plain builtins.
    """
    _patch_pickler()
    _pickle_observers.append((selects, observer))


def stop_observing(observer: ReadObserver | PickleObserver) -> None:
    """Call a function no more."""
    _read_observers[:] = [o for o in _read_observers if o != observer]
    _pickle_observers[:] = [pair for pair in _pickle_observers if pair[1] != observer]


@functools.cache
def _patch_deserialiser() -> None:
    context: Any = serialization.SerializationContext
    original = context.deserialize_objects

    @functools.wraps(original)
    def deserialize_objects(self: Any, serialized: Any, refs: Any, rdt_objects: Any) -> Any:
        values = original(self, serialized, refs, rdt_objects)
        if _read_observers:
            sizes = [0 if data is None else data.size for data, _, _ in serialized]
            for observer in [*_read_observers]:
                observer(values, sizes)
        return values

    context.deserialize_objects = deserialize_objects


@functools.cache
def _patch_pickler() -> None:
    pickler: Any = cloudpickle.Pickler
    dumps, reduce = cloudpickle.dumps, pickler.reducer_override

    @functools.wraps(reduce)
    def reducer_override(self: Any, value: Any) -> Any:
        # Called for each object, however deep, except plain builtins.
        for selected, (selects, _) in zip(
            getattr(_pickling, "selected", ()), _pickle_observers, strict=False
        ):
            if selects(value):
                selected.append(value)
        return reduce(self, value)

    @functools.wraps(dumps)
    def observed_dumps(value: Any, protocol: Any = None, buffer_callback: Any = None) -> bytes:
        observers = [*_pickle_observers]
        if not observers:
            return dumps(value, protocol, buffer_callback)
        outer, sizes = getattr(_pickling, "selected", ()), list[int]()
        _pickling.selected = selected = [list[Any]() for _ in observers]

        def measure(buffer: Any) -> Any:
            sizes.append(memoryview(buffer).nbytes)
            return buffer_callback(buffer)

        try:
            data: bytes = dumps(value, protocol, buffer_callback and measure)
        finally:
            _pickling.selected = outer
        for (_, observer), objects in zip(observers, selected, strict=True):
            observer(objects, len(data) + sum(sizes))
        return data

    pickler.reducer_override, cloudpickle.dumps = reducer_override, observed_dumps


def created_bytes() -> int | None:
    """Bytes created in the object stores of the live nodes; None while a node is being lost."""
    internal_api = lazy_import("ray._private.internal_api")
    grpc = lazy_import("grpc")
    try:
        stats = internal_api.get_memory_info_reply(
            lazy_import("ray._private.state").state
        ).store_stats
    except grpc.RpcError:
        return None
    return stats.cumulative_created_bytes - stats.restored_bytes_total
