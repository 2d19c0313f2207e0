"""Reading of files into a Table."""

from __future__ import annotations

import codecs
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from raysys.arguments import checked
from raysys.data._blocks import results, value_task
from raysys.data._lineage import Lineage
from raysys.data._supported_types import supported_type
from raysys.data._table import Table
from raysys.data.readers import _csv, _csv_inspect
from raysys.data.readers import _json_lines as _json
from raysys.data.readers import _parquet_arrow as _formats
from raysys.data.readers import _record_boundaries as _records
from raysys.data.readers._column_types import (
    FILE,
    LINE,
    MALFORMED,
    NO_VALUE,
    ROW,
    as_lists,
    normal_type,
)
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


@checked
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

    Only headers and samples are read at once; rows are read when they are needed, and of them
    only the needed columns and row groups.

    Args:
        path: A file, a folder, a pattern, or a list of these: paths that the nodes of the
            cluster share, or URIs that pyarrow or fsspec open. CSV and JSON may be compressed
            (gz, bz2, zst, zip), which keeps a file in one block. Folders named `column=value`
            below a folder or in a pattern add a column of integers or text.
        columns: Columns to select, in this order; all by default.
        types: Types of columns that are inferred wrongly from the sample; for CSV.
        null_values: Texts of missing values in CSV, outside of quotes.
        delimiter: Delimiter of CSV; by default a tab for .tsv, else a comma.
        encoding: Encoding of CSV.
        file_format: Format of the files; by default from their names.
        raw: Read for `validate`: values of CSV stay text, malformed lines are kept, and the
            columns `_file`, `_line` (where the row starts, from 1, as an editor counts; for
            Parquet and Arrow `_row`, from 0) and `_malformed` (the text of such a line) are
            added.

    Raises:
        DataError: A file, the format, columns or rows are missing, or columns differ between
            files. Errors within files are raised when rows are read.
    """
    files = find(path)
    kinds = {file_format or _format(file) for file in files}
    if len(kinds) > 1:
        raise DataError(f"{path}: files of several formats, {sorted(kinds)}; read one of them")
    if delimiter is None:
        delimiter = "\t" if _names(files[0])[:1] == ["tsv"] else ","
    if len(delimiter.encode()) != 1:
        raise DataError(f"{path}: delimiter={delimiter!r}; give one ASCII character")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(f"{path}: unknown encoding {encoding!r}; give one like 'latin-1'") from None
    options = _csv.CsvOptions(delimiter, tuple(null_values), encoding, raw)
    task = value_task("inspect")
    kind = kinds.pop()
    inspected: list[list[Any]] = results(
        [task.remote(_parts, kind, files[n : n + 32], options) for n in range(0, len(files), 32)]
    )
    parts = list(itertools.chain.from_iterable(inspected))
    schema = _common_schema(parts, {} if raw else types or {}, columns)
    names = set(schema.names)
    if unknown := [name for name in types or {} if name not in names]:
        raise DataError(f"{path}: unknown columns {unknown} in types; it has {schema.names[:20]}")
    if raw and (reserved := sorted(names & {FILE, LINE, ROW, MALFORMED})):
        raise DataError(f"{path}: has the columns {reserved}, which raw=True adds: rename them")
    given = {"given": frozenset(types or {})} if kind == "csv" else {}
    parts = [replace(part, columns=schema, **given) for part in parts]
    if all(part.file.size == 0 or _rowless(part) for part in parts):
        raise DataError(f"{path}: columns without rows. Give a file with at least one row")
    if kind in ("csv", "json"):
        parts = _cut(parts)
    settings = {"types": types or {}, "raw": raw}
    if kind == "csv":
        settings |= {"null_values": null_values, "delimiter": delimiter, "encoding": encoding}
    lineage = Lineage.of_files(files, kind, settings)
    table = Table.from_plan(parts, parts[0].schema, (), lineage)
    if columns is None:
        return table
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{path}: no such columns: {missing}; it has {schema.names[:20]}. Rename its "
            "columns or give another file"
        )
    origin = table.schema.names[len(schema) :]
    return table.select([*columns, *origin])


def _format(file: File) -> Format:
    names = _names(file)
    if not names or names[0] not in _FORMATS:
        raise DataError(
            f"{file.name}: unknown format of file; give file_format='csv', 'json', 'parquet' or "
            "'arrow'"
        )
    return _FORMATS[names[0]]


def _names(file: File) -> list[str]:
    """Suffixes of a file's name, last first, without those of compression."""
    names = Path(file.path).name.lower().split(".")[:0:-1]
    return names[1:] if names and names[0] in _COMPRESSED else names


def _parts(kind: Format, files: Sequence[File], options: _csv.CsvOptions) -> list[Any]:
    """Parts of files, in a task; those of CSV and JSON are split later."""
    parts: list[Any] = []
    for file in files:
        if kind == "csv":
            parts.append(_csv_inspect.inspect(file, options))
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


def _common_schema(
    parts: Sequence[Any], types: Mapping[str, pa.DataType], selected: Sequence[str] | None = None
) -> pa.Schema:
    """The common schema of all files, with the widest type of numbers.

    Columns of an unsupported type are left out unless they are selected.

    Raises:
        DataError: A file has columns that the first does not have, or an incompatible type; a
            selected column, of all by default, has an unsupported type.
    """
    first, schemas = parts[0], {part.file: part.columns for part in parts}
    names, kinds = first.columns.names, {field.name: field.type for field in first.columns}
    for file, schema in schemas.items():
        own = set(schema.names)
        missing = [name for name in names if name not in own]
        new = [name for name in schema.names if name not in kinds]
        if missing or new:
            raise DataError(
                f"{file.name}: lacks the columns {missing[:5]} and adds {new[:5]}, compared with "
                f"{first.file.name}. Read files with equal columns together"
            )
        for field in schema:
            name, kind = field.name, kinds[field.name]
            if field.type == kind or name in types:
                continue
            try:
                kinds[name] = _wider(kind, field.type)
            except pa.ArrowException:
                raise DataError(
                    f"{file.name}: column {name!r} is {field.type}, but {kind} in "
                    f"{first.file.name}. Convert one, or give types={{{name!r}: ...}} for CSV"
                ) from None
    kinds = {**kinds, **_key_types(list(schemas), kinds)}
    kinds.update({name: kind for name, kind in types.items() if name in kinds})
    fields = []
    for name, kind in kinds.items():
        try:
            fields.append(pa.field(name, supported_type(name, normal_type(kind))))
        except DataError as error:
            if selected is None or name in selected:
                raise DataError(f"{first.file.name}: {error}") from None
    return pa.schema(fields)


def _wider(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of both; values that do not fit it are an error when they are read."""
    kinds = as_lists([kind, other])
    if pa.uint64() in kinds and all(map(pa.types.is_integer, kinds)):
        return pa.uint64()  # Arrow has int64, beyond which its values are
    schemas = [pa.schema([("x", kind)]) for kind in kinds]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type


def _key_types(files: Sequence[File], columns: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Types of columns that folders add: int64 if all values are integers, else text."""
    keys = [file.keys() for file in files]
    for file, file_keys in zip(files, keys, strict=True):
        if file_keys.keys() != keys[0].keys():
            raise DataError(
                f"{file.name}: its folders name the columns {list(file_keys)}, those of "
                f"{files[0].name} name {list(keys[0])}. Read files with equal columns together"
            )
    kinds = {}
    for name in [name for name in keys[0] if name not in columns]:
        values = (file_keys[name] for file_keys in keys)
        integers = all(_INTEGER.fullmatch(value) or value == NO_VALUE for value in values)
        kinds[name] = pa.int64() if integers else pa.large_string()
    return kinds


def _cut(parts: Sequence[Any]) -> list[Any]:
    """Parts of large files that start where records do; files are scanned in tasks."""
    task, size = value_task("scan"), _csv.PART_BYTES
    first = parts[0]
    # Values of JSON have no line ends.
    delimiter = first.options.delimiter if isinstance(first, _csv.CsvPart) else None
    starts = [
        range(part.start, part.stop, size) if part.stop - part.start > size else range(0)
        for part in parts
    ]
    scans = [
        [
            task.remote(_records.scan, part.file, n, min(n + size, part.stop), delimiter)
            for n in part_starts
        ]
        for part, part_starts in zip(parts, starts, strict=True)
    ]
    cut: list[Any] = []
    for part, part_starts, part_scans in zip(parts, starts, scans, strict=True):
        if not part_scans:
            cut.append(part)
            continue
        split = _records.cut(part, list(zip(part_starts, results(part_scans), strict=True)))
        if split is None:
            cut += results([value_task("scan").remote(_records.walk, part, delimiter, size)])[0]
            continue
        cut += split
    return cut
