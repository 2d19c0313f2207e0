"""Measured traffic of a Ray job: through the object store, and of tables through the driver.

Ray 2.60's raylets count the bytes created in their stores but not the bytes read, so every process
counts its own reads as it deserialises. Ray is imported in use only: workers load this at start.
"""

import functools
import gc
import os
import threading
import traceback
import types
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc

READ_HOOK = "raysys.telemetry.object_store.count_reads"
_INLINE = 100 * 1024  # Ray's max_direct_call_object_size, which it does not show to Python.
_TABLES = {("pandas", name) for name in ("DataFrame", "Series", "ExtensionArray", "Index")}
_TABLES |= {("pyarrow", name) for name in ("Table", "RecordBatch", "Array", "ChunkedArray")}
_TABLES |= {("numpy", "ndarray")}
_DTYPES = {("numpy", "dtype"), ("pandas", "ExtensionDtype")}
_LEAVES = (str, bytes, int, float, type(None), type, types.ModuleType, types.FunctionType)
_names_of: dict[type, frozenset[tuple[str, str]]] = {}
_lock, _pickling = threading.Lock(), threading.local()


class _Reads:
    folder: Path | None = None
    file = total = 0


@dataclass(frozen=True)
class StoreBytes:
    """Bytes since the cluster started, over its live nodes; the difference of two is a stage's.

    Attributes:
        put: Bytes created in the stores by tasks, actors and drivers. Results and inline arguments
            up to 100 KiB never enter a store and do not count; a ``ray.put`` of any size does. A
            copy pulled to another node counts there again; one restored from disk does not.
        read: Bytes of objects over 100 KiB (always in a store) that became an argument or the
            result of a ``ray.get``, in processes that called `count_reads`. Each reading counts
            the whole object, though a zero-copy reader may touch few of its pages. None if this
            process does not count. A process cannot tell whether a smaller object was inlined.
    """

    put: int
    read: int | None


def store_bytes() -> StoreBytes:
    """Returns the totals of the cluster that this process is connected to.

    They fall when a node is lost, to 0 for what was put while one is being lost.
    """
    import ray
    from ray._private.internal_api import get_memory_info_reply
    from ray._private.state import state
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    reads: dict[str, int] = {}
    if _Reads.folder == _folder():
        here, task = (
            ray.get_runtime_context().get_node_id(),
            ray.remote(num_cpus=0)(_node_reads),
        )
        ids = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
        at = [task.options(name="count reads", scheduling_strategy=On(node, False)) for node in ids]
        refs = [one.remote() for one in at]
        reads.update(_node_reads())
        for ref in refs:
            # By file name: nodes that share a disk see the same files. One that is lost meanwhile
            # is left out: a figure is not worth the step that is measured.
            with suppress(ray.exceptions.RayError):
                reads.update(ray.get(ref, timeout=60))
    try:
        stats: Any = get_memory_info_reply(state).store_stats
    except grpc.RpcError:  # of a node that is being lost
        return StoreBytes(0, sum(reads.values()) if reads else None)
    put = stats.cumulative_created_bytes - stats.restored_bytes_total
    return StoreBytes(put, sum(reads.values()) if reads else None)


def count_reads() -> None:
    """Counts this process's reads from now on.

    The driver calls it, and gives READ_HOOK as ``worker_process_setup_hook`` of its runtime_env to
    have each worker call it; a worker that cannot import raysys then fails to start. The total is
    a file of the node: it outlives the worker, and costs no message.
    """
    _hook_reading()
    if _Reads.folder != (folder := _folder()):
        folder.mkdir(exist_ok=True)
        _Reads.file, _Reads.total = os.open(folder / uuid.uuid4().hex, os.O_WRONLY | os.O_CREAT), 0
        _Reads.folder = folder


def _folder() -> Path:
    from ray._private import worker

    node: Any = worker._global_node
    return Path(node.get_session_dir_path()) / "raysys_reads"


def _node_reads() -> dict[str, int]:
    return {file.name: int.from_bytes(file.read_bytes(), "little") for file in _folder().glob("*")}


class DriverMeter:
    """Counts the serialised bytes of tables that pass between this process (the driver) and Ray.

    ``in`` is what Ray deserialises here for anyone (``ray.get``, Modin, Ray Data, Ray Train);
    ``out`` what it pickles here: ``ray.put``, arguments, functions with what they close over.
    Tables are pandas, numpy and pyarrow values at any depth; ObjectRefs and Modin partitions are
    not. A message with a table counts whole. One with only pandas indexes, rowless tables, dtypes
    or 1-d integer arrays up to 4 KiB (column positions) counts as labels. Not seen: tables inside
    a ``bytes`` value or a received function, and what passes without Ray, such as files.

    Attributes:
        table_bytes_in, table_bytes_out: Bytes of messages with tables.
        label_bytes_in, label_bytes_out: Bytes of messages with only labels.
        biggest: The ten biggest messages, those with tables first: what passed, where, and bytes.
    """

    installed: ClassVar[list["DriverMeter"]] = []

    def __init__(self) -> None:
        self.table_bytes_in = self.table_bytes_out = 0
        self.label_bytes_in = self.label_bytes_out = 0
        self.biggest: list[tuple[str, int]] = []

    @property
    def table_bytes(self) -> int:
        """Bytes of messages with tables, both ways."""
        return self.table_bytes_in + self.table_bytes_out

    @property
    def label_bytes(self) -> int:
        """Bytes of messages with only labels, both ways."""
        return self.label_bytes_in + self.label_bytes_out

    def take_biggest(self) -> list[tuple[str, int]]:
        """Returns `biggest` and empties it, so that a stage shows its own."""
        taken, self.biggest = self.biggest, []
        return taken

    def install(self) -> None:
        """Starts to count. Ray is patched once a process; unused patches cost next to nothing."""
        _hook_reading()
        _hook_pickling()
        self.installed.append(self)

    def uninstall(self) -> None:
        """Stops counting and keeps the figures."""
        self.installed.remove(self)


def _meter(way: str, found: list[Any], size: int) -> None:
    ranks = [(_rank(value), value) for value in found]
    labels = [value for rank, value in ranks if rank == "label"]
    # A pickler also meets the arrays that make up an index; they are no tables of their own.
    inside = {id(part) for label in labels for part in _walk(label, inside=True)}
    tables = [value for rank, value in ranks if rank == "table" and id(value) not in inside]
    if not tables and not labels:
        return
    rank, lines = "table" if tables else "label", traceback.walk_stack(None)
    places = ((frame.f_code.co_filename, line) for frame, line in lines)
    ours = (f"{f}:{line}" for f, line in places if "lib/python3" not in f and f != __file__)
    what = f"{rank} {type((tables or labels)[0]).__name__} {way} at {next(ours, 'a Ray thread')}"
    with _lock:
        for meter in DriverMeter.installed:
            name = f"{rank}_bytes_{way}"
            setattr(meter, name, getattr(meter, name) + size)
            biggest = [*meter.biggest, (what, size)]
            meter.biggest = sorted(biggest, key=lambda b: (b[0] < "table", -b[1]))[:10]


def _names(value: Any) -> frozenset[tuple[str, str]]:
    # Names, so that no library need be loaded to know its types; bases, to know their subclasses.
    if (cls := type(value)) not in _names_of:
        names = ((str(base.__module__).partition(".")[0], base.__name__) for base in cls.__mro__)
        _names_of[cls] = frozenset(names)
    return _names_of[cls]


def _rank(value: Any) -> str:
    names = _names(value)
    if ("pandas", "Index") in names or 0 in getattr(value, "shape", ()):
        return "label"
    if ("numpy", "ndarray") in names and value.ndim == 1 and value.dtype.kind in "biu":
        return "label" if value.nbytes <= 4096 else "table"
    cells: list[Any] = []
    if hasattr(type(value), "dtype") and value.dtype == object:
        cells = [next(iter(getattr(value, "flat", value)))]
    elif ("pandas", "DataFrame") in names and len(value) == 1:
        cells = list(value.iloc[0])  # Modin fetches the dtypes of a frame as a row.
    kinds = [_names(cell) for cell in cells]
    if cells and all(kind & _DTYPES for kind in kinds):
        return "label"
    if any(library in ("modin", "ray") for kind in kinds for library, _ in kind):
        return ""  # An array of partitions or ObjectRefs.
    return "table"


def _walk(root: Any, inside: bool = False) -> Iterator[Any]:
    """Yields the outermost tables and labels in a value, or all that is inside one."""
    stack, seen = [root], set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        table = bool(_names(value) & _TABLES)
        if table or inside:
            yield value
        if (inside or not table) and type(value).__module__ not in ("ray._raylet", "ray.actor"):
            stack.extend(gc.get_referents(value))


@functools.cache
def _hook_reading() -> None:
    from ray._private import serialization

    context: Any = serialization.SerializationContext
    original = context.deserialize_objects

    def deserialize_objects(self: Any, serialized: Any, refs: Any, rdt_objects: Any) -> Any:
        values = original(self, serialized, refs, rdt_objects)
        sizes = [0 if data is None else data.size for data, _, _ in serialized]
        if _Reads.folder and (large := sum(size for size in sizes if size > _INLINE)):
            with _lock:
                _Reads.total += large
                os.pwrite(_Reads.file, _Reads.total.to_bytes(8, "little"), 0)
        if DriverMeter.installed:
            for value, size in zip(values, sizes, strict=True):
                _meter("in", list(_walk(value)), size)
        return values

    context.deserialize_objects = deserialize_objects


@functools.cache
def _hook_pickling() -> None:
    import ray.cloudpickle as pickle

    pickler: Any = pickle.Pickler
    dumps, reduce = pickle.dumps, pickler.reducer_override

    def reducer_override(self: Any, value: Any) -> Any:
        # Called for each object that is no plain builtin, however deep: no table escapes it.
        found = getattr(_pickling, "found", None)
        if found is not None and _names(value) & _TABLES:
            found.append(value)
        return reduce(self, value)

    def counting_dumps(value: Any, protocol: Any = None, buffer_callback: Any = None) -> bytes:
        outer, found, sizes = getattr(_pickling, "found", None), list[Any](), list[int]()
        _pickling.found = found if DriverMeter.installed else None

        def keep(buffer: Any) -> Any:
            sizes.append(memoryview(buffer).nbytes)
            return buffer_callback(buffer)

        try:
            data: bytes = dumps(value, protocol, buffer_callback and keep)
        finally:
            _pickling.found = outer
        _meter("out", found, len(data) + sum(sizes))
        return data

    pickler.reducer_override, pickle.dumps = reducer_override, counting_dumps
