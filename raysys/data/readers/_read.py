"""Reading files into a Table."""

from __future__ import annotations

import codecs
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from raysys.data._blocks import results, value_task
from raysys.data._lineage import Lineage
from raysys.data._table import Table
from raysys.data.readers import _csv
from raysys.data.readers import _json_lines as _json
from raysys.data.readers import _parquet_arrow as _formats
from raysys.data.readers import _record_boundaries as _records
from raysys.data.readers._column_types import FILE, MALFORMED, NO_VALUE, ROW, as_lists, normal_type
from raysys.data.readers._files import File, find
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Format = Literal["csv", "json", "parquet", "arrow"]
_FORMATS: dict[str, Format] = {
    "csv": "csv", "tsv": "csv", "txt": "csv", "jsonl": "json", "ndjson": "json", "json": "json",
    "parquet": "parquet", "pq": "parquet", "arrow": "arrow", "feather": "arrow", "ipc": "arrow",
}  # fmt: skip
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_COMPRESSED = ("gz", "bz2", "zst", "zip")


def read(
    path: str | Path | Sequence[str | Path],
    columns: Sequence[str] | None = None,
    *,
    types: Mapping[str, pa.DataType] | None = None,
    null_values: Sequence[str] = ("",),
    delimiter: str | None = None,
    encoding: str = "utf-8",
    file_format: Format | None = None,
    raw: bool = False,
) -> Table:
    """Read CSV, JSON lines, Parquet or Arrow files, in tasks.

    Only headers and samples are looked at now; rows are read when they are needed, and of them
    only the columns and row groups that are.

    Args:
        path: A file, a folder, a pattern, or a list of these: paths that the nodes of the
            cluster share, or URIs that pyarrow or fsspec open. CSV and JSON may be compressed
            (gz, bz2, zst, zip), which keeps a file in one block. Folders named `column=value`
            below a folder or in a pattern give a column, of integers or text.
        columns: Those to keep, in this order; all by default.
        types: Of columns where the guess, made from a sample, is wrong; for CSV.
        null_values: What stands for a missing value in CSV, outside of quotes.
        delimiter: CSV's; a tab for .tsv, else a comma.
        encoding: CSV's.
        file_format: By the files' names if not given.
        raw: For `check`: CSV's values stay text, a line that is no record is kept instead of
            being refused, and the columns `_file`, `_row` (from 0, in its file) and
            `_malformed` (the text of such a line) are added.

    Raises:
        DataError: No such file, an unknown format, no columns or rows, columns that are missing
            or differ between files; what is wrong inside is found when the rows are read.
    """
    files = find(path)
    kinds = {file_format or _format(file) for file in files}
    if len(kinds) > 1:
        raise DataError(f"{path}: holds files of several formats, {sorted(kinds)}; read one only")
    if delimiter is None:
        delimiter = "\t" if _names(files[0])[:1] == ["tsv"] else ","
    if len(delimiter.encode()) != 1:
        raise DataError(f"{path}: delimiter={delimiter!r}; give one character of ASCII")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(
            f"{path}: encoding={encoding!r} is not known; give one like 'latin-1'"
        ) from None
    options = _csv.CsvOptions(delimiter, tuple(null_values), encoding, raw)
    look = value_task("inspect")
    kind = kinds.pop()
    found: list[list[Any]] = results(
        [look.remote(_parts, kind, files[n : n + 32], options) for n in range(0, len(files), 32)]
    )
    parts = [part for some in found for part in some]
    schema = _common_schema(parts, {} if raw else types or {})
    known = set(schema.names)
    if unknown := [name for name in types or {} if name not in known]:
        raise DataError(f"{path}: types are given of {unknown}, which are no columns of it")
    if raw and (taken := sorted(known & {FILE, ROW, MALFORMED})):
        raise DataError(f"{path}: has the columns {taken}, which raw=True adds: rename them")
    parts = [replace(part, columns=schema) for part in parts]
    if all(part.file.size == 0 or _rowless(part) for part in parts):
        raise DataError(f"{path}: has columns but no rows. Give a file with at least one row")
    if kind in ("csv", "json"):
        parts = _cut(parts, raw)
    how = {"types": types or {}, "raw": raw}
    if kind == "csv":
        how |= {"null_values": null_values, "delimiter": options.delimiter, "encoding": encoding}
    lineage = Lineage.of_files(files, kind, how)
    table = Table.from_plan(parts, parts[0].schema, (), lineage)
    if columns is None:
        return table
    if missing := [name for name in columns if name not in known]:
        raise DataError(
            f"{path}: lacks the columns {missing}; it has {schema.names[:20]}. Rename its "
            "columns or give another file"
        )
    origin = table.schema.names[len(schema) :]
    return table.select([*columns, *origin])


def _format(file: File) -> Format:
    names = _names(file)
    if not names or names[0] not in _FORMATS:
        raise DataError(
            f"{file.name}: the format is not known by its name; give file_format='csv', 'json', "
            "'parquet' or 'arrow'"
        )
    return _FORMATS[names[0]]


def _names(file: File) -> list[str]:
    """Endings of a file's name, last first, without those of compression."""
    names = Path(file.path).name.lower().split(".")[:0:-1]
    return names[1:] if names and names[0] in _COMPRESSED else names


def _parts(kind: Format, files: Sequence[File], options: _csv.CsvOptions) -> list[Any]:
    """The parts of files, in a task; CSV and JSON are cut later."""
    parts: list[Any] = []
    for file in files:
        if kind == "csv":
            parts.append(_csv.inspect(file, options))
        elif kind == "json":
            parts.append(_json.inspect_json(file, options.raw))
        elif kind == "parquet":
            parts += _formats.parquet_parts(file, options.raw)
        else:
            parts += _formats.arrow_parts(file, options.raw)
    return parts


def _rowless(part: Any) -> bool:
    if isinstance(part, (_csv.CsvPart, _json.JsonPart)):
        return part.start == part.stop
    return not (part.groups if isinstance(part, _formats.ParquetPart) else part.batches)


def _common_schema(parts: Sequence[Any], types: Mapping[str, pa.DataType]) -> pa.Schema:
    """One schema of all files; numbers may be wider in some.

    Raises:
        DataError: A file has other columns than the first, or a type that does not fit.
    """
    first, schemas = parts[0], {part.file: part.columns for part in parts}
    names, kinds = first.columns.names, {field.name: field.type for field in first.columns}
    for file, schema in schemas.items():
        held = set(schema.names)
        missing = [name for name in names if name not in held]
        new = [name for name in schema.names if name not in kinds]
        if missing or new:
            raise DataError(
                f"{file.name}: lacks the columns {missing[:5]} and has {new[:5]} besides, compared "
                f"with {first.file.name}. Read files of one kind together"
            )
        for field in schema:
            name, kind = field.name, kinds[field.name]
            if field.type == kind or name in types:
                continue
            one, other = as_lists(kind, field.type)
            try:
                both = pa.unify_schemas(
                    [pa.schema([("x", one)]), pa.schema([("x", other)])],
                    promote_options="permissive",
                )
            except pa.ArrowException:
                raise DataError(
                    f"{file.name}: the column {name!r} is {field.type}, in {first.file.name} it "
                    f"is {kind}. Convert one, or give types={{{name!r}: ...}} for CSV"
                ) from None
            kinds[name] = both.field("x").type
    kinds = {**kinds, **_key_types(list(schemas), kinds)}
    kinds.update({name: kind for name, kind in types.items() if name in kinds})
    return pa.schema([pa.field(name, normal_type(kind)) for name, kind in kinds.items()])


def _key_types(files: Sequence[File], known: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Columns that folders add: integers if each value is written as one, else text."""
    keys = [file.keys() for file in files]
    kinds = {}
    for name in keys[0]:
        values = [of_file.get(name) for of_file in keys]
        whole = all(v is not None and (_INTEGER.fullmatch(v) or v == NO_VALUE) for v in values)
        kinds[name] = pa.int64() if whole else pa.large_string()
    for file, of_file in zip(files, keys, strict=True):
        if of_file.keys() != keys[0].keys():
            raise DataError(
                f"{file.name}: its folders name the columns {list(of_file)}, those of "
                f"{files[0].name} name {list(keys[0])}. Read files of one kind together"
            )
    return {name: kind for name, kind in kinds.items() if name not in known}


def _cut(parts: Sequence[Any], raw: bool) -> list[Any]:
    """Large files in parts that start where records do; scanned in tasks."""
    task, size = value_task("scan"), _csv.PART_BYTES
    first = parts[0]
    # JSON has no line end within a value.
    delimiter = first.options.delimiter if isinstance(first, _csv.CsvPart) else None
    scans = {
        number: [
            (
                start,
                task.remote(
                    _records.scan, part.file, start, min(start + size, part.stop), delimiter, raw
                ),
            )
            for start in range(part.start, part.stop, size)
        ]
        for number, part in enumerate(parts)
        if part.stop - part.start > size
    }
    cut: list[Any] = []
    for number, part in enumerate(parts):
        if number not in scans:
            cut.append(part)
            continue
        starts = [start for start, _ in scans[number]]
        found = results([scan for _, scan in scans[number]])
        made = _records.cut(part, list(zip(starts, found, strict=True)))
        if made is None:
            cut += results([value_task("scan").remote(_records.walk, part, delimiter, size)])[0]
            continue
        pieces, numbered = made
        if raw and not numbered:
            count = value_task("count")
            counts = results([count.remote(_count, piece, delimiter) for piece in pieces])
            firsts = itertools.accumulate(counts[:-1], initial=0)
            pieces = [replace(p, first_row=f) for p, f in zip(pieces, firsts, strict=True)]
        cut += pieces
    return cut


def _count(part: Any, delimiter: str | None) -> int:
    return _records.count_records(part.file.read_range(part.start, part.stop), delimiter)
