"""Where a Table comes from: the chain of operations back to files."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raysys.data._files import File
    from raysys.storage import Storage

_FOLDER = "lineage"
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
        return cls(f"read {kind}", {"files": found, **{k: plain(v) for k, v in how.items() if v}})

    @functools.cached_property
    def id(self) -> str:
        """A digest of the operation, its parameters, its code and its inputs."""
        said = [self.operation, self.parameters, self.code, [one.id for one in self.inputs]]
        text = json.dumps(said, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def chain(self) -> Iterator[Lineage]:
        """This and all before it, each once, inputs after what they went into."""
        seen: dict[str, Lineage] = {}
        waiting = [self]
        while waiting:
            one = waiting.pop()
            if one.id not in seen:
                seen[one.id] = one
                waiting += reversed(one.inputs)
        yield from seen.values()

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
    """Name and digest of a function's code: its own and that of functions it closes over."""
    while isinstance(function, functools.partial):
        function = function.func
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"
    digest = hashlib.blake2b(digest_size=8)
    _digest_code(getattr(function, "__code__", None), digest)
    for cell in getattr(function, "__closure__", None) or ():
        inner = cell.cell_contents
        _digest_code(getattr(inner, "__code__", None), digest)
        if isinstance(inner, (str, int, float, bool, tuple)):
            digest.update(repr(inner).encode())
    return f"{name}@{digest.hexdigest()}"


def _digest_code(code: types.CodeType | None, digest: Any) -> None:
    if code is None:
        return
    digest.update(code.co_code)
    digest.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _digest_code(constant, digest)
        else:
            digest.update(repr(constant).encode())


def plain(value: Any) -> Any:
    """A parameter as JSON can hold it: text of what is not plain, cut where it is long."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return code_of(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    said = str(value)
    # An object that says its address would say another in each process.
    return type(value).__qualname__ if f" at {hex(id(value))}" in said else said[:1000]
