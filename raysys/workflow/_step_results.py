"""Step results under the storage root: Tables as files of blocks, other values pickled."""

from __future__ import annotations

import hashlib
import io
import itertools
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import cloudpickle
import ray
from ray import ObjectRef

from raysys import audit
from raysys.arguments import checked
from raysys.data import Table
from raysys.errors import StorageError
from raysys.storage import read_records

if TYPE_CHECKING:
    from raysys.storage import Storage

_VALUE = "value.pickle"
_MAX_ITEMS = 1000  # with a digest of their own


@dataclass(frozen=True)
class StepResult:
    """A stored result.

    Attributes:
        path: Storage path of its folder.
        content: Digest of the value: equal for equal values, independent of the code.
        items: The same of each item of a mapping or sequence, by the `repr` of its key.
    """

    path: str
    content: str
    items: dict[str, str] = field(default_factory=dict)


def save(storage: Storage, path: str, value: Any) -> StepResult:
    """Write a picklable value into a folder, which appears when it is complete.

    Tables in it, at any depth, are written by tasks, a file per block; objects of Ray's store
    (`ray.put`) are written by this process. They come back as Tables and references.
    """
    contents: list[str] = []
    # With the object itself, so that its id is not reused.
    ids: dict[int, tuple[Any, tuple[str, int]]] = {}

    with storage.staged(path) as folder:

        class Pickler(cloudpickle.Pickler):
            def persistent_id(self, item: Any) -> Any:
                if not isinstance(item, Table | ObjectRef):
                    return None
                if id(item) in ids:
                    return ids[id(item)][1]
                number = len(contents)
                if isinstance(item, Table):
                    contents.append(item.write_blocks(folder, f"table-{number}"))
                else:
                    data = cloudpickle.dumps(ray.get(item))
                    folder.write_signed(f"object-{number}", data)
                    contents.append(hashlib.blake2b(data, digest_size=16).hexdigest())
                persistent = "table" if isinstance(item, Table) else "object", number
                ids[id(item)] = item, persistent
                return persistent

        buffer = io.BytesIO()
        Pickler(buffer, protocol=5).dump(value)
        folder.write_signed(_VALUE, buffer.getvalue())
    content = hashlib.blake2b(buffer.getvalue(), digest_size=16)
    content.update(repr(contents).encode())

    class Hasher(cloudpickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return contents[ids[id(item)][1][1]] if id(item) in ids else None

    def item_content(item: Any) -> str:
        buffer = io.BytesIO()
        Hasher(buffer, protocol=5).dump(item)
        return hashlib.blake2b(buffer.getbuffer(), digest_size=16).hexdigest()

    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    known = {repr(key): item_content(item) for key, item in itertools.islice(items, _MAX_ITEMS)}
    return StepResult(path, content.hexdigest(), known)


def load(storage: Storage, result: StepResult, *, values: bool = False) -> Any:
    """Read a value back; its Tables are read by the tasks that need their rows.

    Args:
        storage: The storage root.
        result: Result of `save`.
        values: Read objects of Ray's store as their values, which needs no cluster.

    Raises:
        StorageError: The result was removed.
    """
    data = storage.read_signed(f"{result.path}/{_VALUE}")
    if data is None:
        raise StorageError(
            f"no step result at {storage.uri(result.path)}: it was removed. Run the job again "
            "with `--from` that step"
        )
    loaded: dict[int, Any] = {}

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, persistent: Any) -> Any:
            kind, number = persistent
            if number not in loaded and kind == "table":
                loaded[number] = Table.read_blocks(storage, f"{result.path}/table-{number}")
            elif number not in loaded:
                content = storage.read_signed(f"{result.path}/object-{number}")
                assert content is not None
                item = pickle.loads(content)
                loaded[number] = item if values else ray.put(item)
            return loaded[number]

    return Unpickler(io.BytesIO(data)).load()


def require_intact(storage: Storage, path: str) -> None:
    """Check that a result can be read back, without reading its rows.

    Raises:
        StorageError: It was removed, is damaged, or was not written by this cluster.
    """
    names = storage.names(path)
    if _VALUE not in names:
        raise StorageError(f"no step result at {storage.uri(path)}: it was removed")
    for name in names:
        if name.startswith("table-"):
            Table.read_blocks(storage, f"{path}/{name}")
    storage.read_signed(f"{path}/{_VALUE}")


@checked
def prune(storage: Storage, older_than: timedelta, now: datetime | None = None) -> list[str]:
    """Remove step results of a minimum age; a later run computes them again.

    Models, indexes and records of runs stay. Each removal has an audit entry.

    Args:
        storage: The storage root.
        older_than: Minimum age.
        now: Current time with a time zone; the system clock by default.

    Returns:
        Storage paths of the removed folders.
    """
    oldest, removed = (now or datetime.now(UTC)) - older_than, []
    for job in storage.names("steps"):
        for step in storage.names(f"steps/{job}"):
            for key in storage.names(f"steps/{job}/{step}"):
                path = f"steps/{job}/{step}/{key}"
                started = read_records(storage, [f"{path}/step.json"], _start_of)
                if not started or started[0] >= oldest:
                    continue  # unfinished: a run may be computing it
                audit.record(storage, "result.delete", path)
                storage.remove(f"{path}/step.json")  # first, so that no run takes a part of it
                storage.remove(path)
                removed.append(path)
    return removed


def _start_of(record: Mapping[str, str]) -> datetime:
    """Start of a step's run, from the run's name: JOB-YYYYmmdd-HHMMSS-xxxx."""
    day, moment = record["run"].split("-")[-3:-1]
    return datetime.strptime(f"{day}{moment}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
