"""Where a Table comes from: the chain of operations back to files."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.data._row_hash import block_digest
from raysys.identity import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raysys.data.readers._files import File
    from raysys.storage import Storage

_FOLDER = "lineage"
_MOST = 1000  # characters of a parameter that a record shows
_LINE = 160  # of parameters in `lineage_text`


@dataclass(eq=False)
class Lineage:
    """One operation that made a Table, and what it worked on.

    Attributes:
        operation: Its name, as the dashboard shows its tasks.
        parameters: What it was told, as text or plain values.
        inputs: Of the Tables that it worked on.
        code: Digest of the functions that it was given; empty if none.
        rows: Rows of the Table, once they are counted.
        fingerprint: Of the Table, once it is computed.
    """

    operation: str
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[Lineage, ...] = ()
    code: str = ""
    rows: int | None = None
    fingerprint: str | None = None

    @classmethod
    def of_files(cls, files: Sequence[File], kind: str, how: Mapping[str, Any]) -> Lineage:
        """The start of a chain: files with size and time of their last change."""
        found = [{"file": f.name, "bytes": f.size, "modified": f.modified} for f in files]
        return cls(f"read {kind}", {"files": found, **plain(dict(how))})

    @functools.cached_property
    def id(self) -> str:
        """A digest of the operation, its parameters, its code and its inputs."""
        said = [self.operation, self.parameters, self.code, [one.id for one in self.inputs]]
        text = json.dumps(said, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __post_init__(self) -> None:
        self.id  # noqa: B018 - now, so that a long chain is not gone through by recursion

    def __reduce__(self) -> tuple[Any, ...]:
        # Flat, since pickle goes through a long chain by recursion.
        order = list(self.chain())[::-1]
        known = {one.id: number for number, one in enumerate(order)}
        flat = [
            (one.operation, one.parameters, tuple(known[i.id] for i in one.inputs), one.code,
             one.rows, one.fingerprint)
            for one in order
        ]  # fmt: skip
        return _restored, (flat,)

    def chain(self) -> Iterator[Lineage]:
        """This and all before it, each once, inputs after what they went into."""
        done: dict[str, Lineage] = {}
        waiting = [(self, False)]
        while waiting:
            one, has_inputs_done = waiting.pop()
            if has_inputs_done:
                done.setdefault(one.id, one)
            elif one.id not in done:
                waiting.append((one, True))
                waiting += [(before, False) for before in one.inputs]
        yield from reversed(done.values())

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "id": self.id,
            "operation": self.operation,
            "parameters": self.parameters,
            "inputs": [one.id for one in self.inputs],
            "code": self.code,
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            "raysys": importlib.metadata.version("raysys"),
        }

    def write(self, storage: Storage) -> str:
        """Keep the chain under `lineage/` of a storage root; its id.

        What is there already stays, unless it knows less.
        """
        for one in self.chain():
            kept = storage.read_bytes(f"{_FOLDER}/{one.id}.json")
            known = json.loads(kept) if kept else {}
            record = {k: v if v is not None else known.get(k) for k, v in one.record().items()}
            if record != known:
                storage.write_json(f"{_FOLDER}/{one.id}.json", record)
        return self.id


def _restored(flat: Sequence[tuple[Any, ...]]) -> Lineage:
    made: list[Lineage] = []
    for operation, parameters, inputs, *known in flat:
        made.append(Lineage(operation, parameters, tuple(made[n] for n in inputs), *known))
    return made[-1]


def read_lineage(storage: Storage, lineage_id: str) -> dict[str, dict[str, Any]]:
    """Records of a chain by id, that of `lineage_id` first; empty if it is not known."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [lineage_id]
    while waiting:
        one = waiting.pop()
        data = None if one in found else storage.read_bytes(f"{_FOLDER}/{one}.json")
        if data:
            found[one] = json.loads(data)
            waiting += reversed(found[one]["inputs"])
    return found


def lineage_text(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A chain as text: each operation above what it worked on, indented."""
    lines: list[str] = []
    shown: set[str] = set()

    def show(one: str, depth: int) -> None:
        record = records.get(one)
        start = "  " * depth + one
        if record is None:
            lines.append(f"{start} is not recorded")
            return
        if one in shown:
            lines.append(f"{start} {record['operation']}, as above")
            return
        shown.add(one)
        rows = "" if record["rows"] is None else f", {record['rows']} rows"
        lines.append(f"{start} {record['operation']}{rows}")
        files = record["parameters"].get("files", ())
        said = {k: v for k, v in record["parameters"].items() if v and k != "files"}
        if said:
            lines.append(f"{'  ' * depth}    {json.dumps(said)[:_LINE]}")
        if record["code"]:
            lines.append(f"{'  ' * depth}    code {record['code']}")
        for file in files:
            when = f", of {file['modified']}" if file["modified"] else ""
            lines.append(f"{'  ' * depth}    file {file['file']}, {file['bytes']} bytes{when}")
        for before in record["inputs"]:
            show(before, depth + 1)

    for first in list(records)[:1]:
        show(first, 0)
    return "\n".join(lines)


def code_of(function: Callable[..., Any]) -> str:
    """Name and digest of a function: the code it reaches and the values that it closes over."""
    named: Any = function
    while isinstance(named, functools.partial):
        named = named.func
    if not hasattr(named, "__qualname__"):  # an object that can be called
        named = type(named).__call__
    return f"{named.__module__}.{named.__qualname__}@{digest(function, strict=False)[:16]}"


def plain(value: Any) -> Any:
    """A parameter as JSON can hold it: of what is not plain its text, or a digest of its content.

    The same in every process for equal values: sets are sorted, and an object that only says its
    address is known by its type.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(one) for one in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (types.ModuleType, type)):
        return value.__name__
    if hasattr(value, "__qualname__") or isinstance(value, functools.partial):
        return code_of(value)
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    return _content(value)


def _content(value: Any) -> str:
    """What tells an object from others of its type, whose text may leave some of it out."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind.startswith("polars") and kind.endswith(".Expr"):
        return f"{str(value)[:_MOST]} {digest(value)[:16]}"
    if kind == "numpy.ndarray" and value.dtype != object:
        return f"{value.dtype}{list(value.shape)} {digest(value)[:16]}"
    if kind == "pyarrow.lib.Table":
        return f"{value.column_names} {block_digest(value)}"
    said = str(value)
    # An address, or the number of an object, would be another one in each process.
    unstable = " at 0x" in said or kind.endswith(".ObjectRef")
    return type(value).__qualname__ if unstable else _short(said)


def _short(text: str) -> str:
    """A text, cut where it is long; then with its digest."""
    return text if len(text) <= _MOST else f"{text[:_MOST]}... {digest(text)[:16]}"
