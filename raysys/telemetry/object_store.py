"""Measured traffic of a job: through the object store, and of tables through the driver.

Ray 2.60's raylets count the bytes created in their stores but not the bytes read, so every process
counts its own reads as it deserialises. That patches every worker, so it is off unless
`cluster.connect(measure_traffic=True)` asks for it.
"""

from __future__ import annotations

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
from typing import Any

from raysys.imports import lazy_import
from raysys.ray_internals import process, serialization

ray = lazy_import("ray")

_INLINE = 100 * 1024  # Ray's max_direct_call_object_size, which it does not show to Python.
_TABLES = {("pandas", name) for name in ("DataFrame", "Series", "ExtensionArray", "Index")}
_TABLES |= {("pyarrow", name) for name in ("Table", "RecordBatch", "Array", "ChunkedArray")}
_TABLES |= {("numpy", "ndarray")}
_DTYPES = {("numpy", "dtype"), ("pandas", "ExtensionDtype")}
_LEAVES = (str, bytes, int, float, type(None), type, types.ModuleType, types.FunctionType)
_base_names: dict[type, frozenset[tuple[str, str]]] = {}
_lock = threading.Lock()


class _ReadCount:
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
            result of a ``ray.get``, in processes that called `count_reads`. Each read counts
            the whole object, though a zero-copy reader may touch few of its pages. None if this
            process does not count. A process cannot tell whether a smaller object was inlined.
    """

    put: int
    read: int | None


def store_bytes() -> StoreBytes:
    """Totals of the cluster that this process is connected to.

    They fall when a node is lost, to 0 for `put` while one is being lost.
    """
    read = sum(_cluster_reads().values()) if counts_reads() else None
    return StoreBytes(serialization.created_bytes() or 0, read)


def counts_reads() -> bool:
    """Whether this process counts its reads on the cluster that it is connected to."""
    return _ReadCount.folder is not None and _ReadCount.folder == _folder()


def count_reads() -> None:
    """Count this process's reads from now on.

    The driver calls it, and each worker by the hook of its set-up. The total is a file of the node:
    it outlives the worker, and costs no message.
    """
    if _ReadCount.folder is None:
        serialization.observe_reads(_add_reads)
    if _ReadCount.folder != (folder := _folder()):
        folder.mkdir(exist_ok=True)
        file = os.open(folder / uuid.uuid4().hex, os.O_WRONLY | os.O_CREAT)
        _ReadCount.file, _ReadCount.total, _ReadCount.folder = file, 0, folder


def _add_reads(values: list[Any], sizes: list[int]) -> None:
    if large := sum(size for size in sizes if size > _INLINE):
        with _lock:
            _ReadCount.total += large
            os.pwrite(_ReadCount.file, _ReadCount.total.to_bytes(8, "little"), 0)


def _folder() -> Path:
    return process.session_folder() / "raysys_reads"


def _cluster_reads() -> dict[str, int]:
    """Bytes read by each process, by file name: nodes that share a disk see the same files."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    own_node = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0, name="count reads")(_node_reads)
    refs = [
        task.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != own_node
    ]
    reads = _node_reads()
    for ref in refs:
        # A node that is lost meanwhile is left out: a figure is not worth the step it measures.
        with suppress(ray.exceptions.RayError):
            reads.update(ray.get(ref, timeout=60))
    return reads


def _node_reads() -> dict[str, int]:
    return {file.name: int.from_bytes(file.read_bytes(), "little") for file in _folder().glob("*")}


class DriverMeter:
    """Serialised bytes of tables that pass between this process (the driver) and Ray.

    ``in`` is what Ray deserialises in this process for anyone (``ray.get``, Modin, Ray Data, Ray
    Train); ``out`` what it pickles: ``ray.put``, arguments, functions with what they close over.
    Tables are pandas, numpy and pyarrow values at any depth; ObjectRefs and Modin partitions are
    not. A message with a table counts whole. One with only pandas indexes, rowless tables, dtypes
    or 1-d integer arrays up to 4 KiB (column positions) counts as labels. Not seen: tables inside
    a ``bytes`` value or a received function, and what passes without Ray, such as files.

    Attributes:
        table_bytes_in, table_bytes_out: Bytes of messages with tables.
        label_bytes_in, label_bytes_out: Bytes of messages with only labels.
        biggest: The ten biggest messages, those with tables first: content, place and bytes.
    """

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
        """Return `biggest` and empty it, so that a stage shows its own."""
        biggest, self.biggest = self.biggest, []
        return biggest

    def install(self) -> None:
        """Start counting. Ray is patched once a process; unused patches cost next to nothing."""
        serialization.observe_reads(self._deserialised)
        serialization.observe_pickling(_is_table, self._pickled)

    def uninstall(self) -> None:
        """Stop counting and keep the figures."""
        serialization.stop_observing(self._deserialised)
        serialization.stop_observing(self._pickled)

    def _deserialised(self, values: list[Any], sizes: list[int]) -> None:
        for value, size in zip(values, sizes, strict=True):
            self._count("in", list(_walk(value)), size)

    def _pickled(self, tables: list[Any], size: int) -> None:
        self._count("out", tables, size)

    def _count(self, direction: str, values: list[Any], size: int) -> None:
        ranks = [(_rank(value), value) for value in values]
        labels = [value for rank, value in ranks if rank == "label"]
        # A pickler also meets the arrays that make up an index; those do not count as tables.
        inside = {id(part) for label in labels for part in _walk(label, inside=True)}
        tables = [value for rank, value in ranks if rank == "table" and id(value) not in inside]
        if not tables and not labels:
            return
        rank = "table" if tables else "label"
        place = next(_own_frames(), "a Ray thread")
        content = f"{rank} {type((tables or labels)[0]).__name__} {direction} at {place}"
        with _lock:
            name = f"{rank}_bytes_{direction}"
            setattr(self, name, getattr(self, name) + size)
            biggest = [*self.biggest, (content, size)]
            self.biggest = sorted(biggest, key=lambda b: (b[0] < "table", -b[1]))[:10]


def _own_frames() -> Iterator[str]:
    """Places on the stack that are neither of a library nor of the meter."""
    skipped = {__file__, serialization.__file__}
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if "lib/python3" not in file and file not in skipped:
            yield f"{file}:{line}"


def _names(value: Any) -> frozenset[tuple[str, str]]:
    # Names, so that no library need be loaded to know its types; bases, to know their subclasses.
    if (cls := type(value)) not in _base_names:
        names = ((str(base.__module__).partition(".")[0], base.__name__) for base in cls.__mro__)
        _base_names[cls] = frozenset(names)
    return _base_names[cls]


def _is_table(value: Any) -> bool:
    return bool(_names(value) & _TABLES)


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
    """Yield the outermost tables and labels in a value, or all that is inside one."""
    stack, seen = [root], set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        table = _is_table(value)
        if table or inside:
            yield value
        if (inside or not table) and type(value).__module__ not in ("ray._raylet", "ray.actor"):
            stack.extend(gc.get_referents(value))
