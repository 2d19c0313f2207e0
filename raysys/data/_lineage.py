"""The lineage of a Table: the chain of operations back to files."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.arguments import checked
from raysys.data._row_hash import block_digest
from raysys.identity import digest
from raysys.storage import read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raysys.data.readers._files import File
    from raysys.storage import Storage

_FOLDER = "lineage"
_MAX_CHARACTERS = 1000  # of a parameter in a record
_LINE_CHARACTERS = 160  # of parameters in `lineage_text`


@dataclass(eq=False)
class Lineage:
    """An operation that produced a Table, and its inputs.

    Attributes:
        operation: Name, as the dashboard shows its tasks.
        parameters: Parameters as text or plain values.
        inputs: Lineages of the input Tables.
        code: Digest of the functions among the parameters; empty without any.
        rows: Number of rows of the Table, once counted.
        fingerprint: Fingerprint of the Table, once computed.
    """

    operation: str
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[Lineage, ...] = ()
    code: str = ""
    rows: int | None = None
    fingerprint: str | None = None

    @classmethod
    def of_files(cls, files: Sequence[File], kind: str, options: Mapping[str, Any]) -> Lineage:
        """The start of a chain: files with size and time of their last change."""
        records = [{"file": f.name, "bytes": f.size, "modified": f.modified} for f in files]
        return cls(f"read {kind}", {"files": records, **plain(dict(options))})

    @functools.cached_property
    def id(self) -> str:
        """A digest of the operation, its parameters, its code and its inputs."""
        inputs = [lineage.id for lineage in self.inputs]
        parts = [self.operation, self.parameters, self.code, inputs]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __post_init__(self) -> None:
        self.id  # noqa: B018 - now, so that the id of a long chain needs no deep recursion

    def __reduce__(self) -> tuple[Any, ...]:
        # Flat, because pickle would recurse through a long chain.
        order = list(self.chain())[::-1]
        numbers = {lineage.id: number for number, lineage in enumerate(order)}
        flat = [
            (step.operation, step.parameters, tuple(numbers[i.id] for i in step.inputs), step.code,
             step.rows, step.fingerprint)
            for step in order
        ]  # fmt: skip
        return _restored, (flat,)

    def chain(self) -> Iterator[Lineage]:
        """This lineage and all before it, each once, inputs after the operations that use them."""
        done: dict[str, Lineage] = {}
        waiting = [(self, False)]
        while waiting:
            lineage, inputs_done = waiting.pop()
            if inputs_done:
                done.setdefault(lineage.id, lineage)
            elif lineage.id not in done:
                waiting.append((lineage, True))
                waiting += [(before, False) for before in lineage.inputs]
        yield from reversed(done.values())

    def record(self) -> dict[str, Any]:
        """The lineage as plain data."""
        return {
            "id": self.id,
            "operation": self.operation,
            "parameters": self.parameters,
            "inputs": [lineage.id for lineage in self.inputs],
            "code": self.code,
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            "raysys": importlib.metadata.version("raysys"),
        }

    def write(self, storage: Storage) -> str:
        """Write the chain under `lineage/` of a storage root; returns its id.

        Rows and fingerprints of earlier records are kept where this chain has none.
        """
        for lineage in self.chain():
            path = f"{_FOLDER}/{lineage.id}.json"
            written: list[dict[str, Any]] = read_records(storage, [path])
            earlier = written[0] if written else {}
            record = {k: earlier.get(k) if v is None else v for k, v in lineage.record().items()}
            if record != earlier:
                storage.write_json(path, record)
        return self.id


def _restored(flat: Sequence[tuple[Any, ...]]) -> Lineage:
    chain: list[Lineage] = []
    for operation, parameters, inputs, *facts in flat:
        chain.append(Lineage(operation, parameters, tuple(chain[n] for n in inputs), *facts))
    return chain[-1]


@checked
def read_lineage(storage: Storage, lineage_id: str) -> dict[str, dict[str, Any]]:
    """Records of a chain by id, that of `lineage_id` first; empty for an unknown id."""
    records: dict[str, dict[str, Any]] = {}
    waiting = [lineage_id]
    while waiting:
        key = waiting.pop()
        if key in records:
            continue
        written: list[dict[str, Any]] = read_records(storage, [f"{_FOLDER}/{key}.json"])
        if written:
            records[key] = written[0]
            waiting += reversed(records[key]["inputs"])
    return records


def lineage_text(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A chain as text: each operation above its inputs, indented."""
    lines: list[str] = []
    shown: set[str] = set()

    def show(key: str, depth: int) -> None:
        record = records.get(key)
        start = "  " * depth + key
        if record is None:
            lines.append(f"{start} is not recorded")
            return
        if key in shown:
            lines.append(f"{start} {record['operation']}, as above")
            return
        shown.add(key)
        rows = "" if record["rows"] is None else f", {record['rows']} rows"
        lines.append(f"{start} {record['operation']}{rows}")
        files = record["parameters"].get("files", ())
        parameters = {k: v for k, v in record["parameters"].items() if v and k != "files"}
        if parameters:
            lines.append(f"{'  ' * depth}    {json.dumps(parameters)[:_LINE_CHARACTERS]}")
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
    """A parameter as plain JSON values; other objects as text, or a digest of their content.

    Equal in every process for equal values: sets are sorted, and an object whose text is only its
    address is identified by its type.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (types.ModuleType, type)):
        return value.__name__
    if hasattr(value, "__qualname__") or isinstance(value, functools.partial):
        return code_of(value)
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    return _content(value)


def _content(value: Any) -> str:
    """Text that identifies an object's content, which `str` may abbreviate."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind.startswith("polars") and kind.endswith(".Expr"):
        return f"{str(value)[:_MAX_CHARACTERS]} {digest(value)[:16]}"
    if kind == "numpy.ndarray" and value.dtype != object:
        return f"{value.dtype}{list(value.shape)} {digest(value)[:16]}"
    if kind == "pyarrow.lib.Table":
        return f"{value.column_names} {block_digest(value)}"
    text = str(value)
    # An address, or the id of an object reference, differs between processes.
    unstable = " at 0x" in text or kind.endswith(".ObjectRef")
    return type(value).__qualname__ if unstable else _short(text)


def _short(text: str) -> str:
    """A text; a long one is truncated and has its digest appended."""
    return (
        text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}... {digest(text)[:16]}"
    )
