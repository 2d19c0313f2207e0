"""Reading files into a Table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raysys.data import _csv, _formats
from raysys.data._blocks import results, value_task
from raysys.data._columns import normal_type
from raysys.data._files import File, find
from raysys.data._lineage import Lineage
from raysys.data._table import Table
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

Format = Literal["csv", "json", "parquet", "arrow"]
_FORMATS: dict[str, Format] = {
    "csv": "csv", "tsv": "csv", "txt": "csv", "jsonl": "json", "ndjson": "json", "json": "json",
    "parquet": "parquet", "pq": "parquet", "arrow": "arrow", "feather": "arrow", "ipc": "arrow",
}  # fmt: skip
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
            cluster share, or URIs that pyarrow or fsspec open. CSV may be compressed (gz, bz2,
            zst, zip), which keeps a file in one block. Folders named `column=value` give a
            column.
        columns: Those to keep, in this order; all by default.
        types: Of CSV's columns where the guess, made from a sample, is wrong.
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
    options = _csv.CsvOptions(delimiter or ",", tuple(null_values), encoding, raw)
    if delimiter is None and files[0].path.endswith((".tsv", ".tsv.gz")):
        options = replace(options, delimiter="\t")
    look = value_task("inspect")
    kind = kinds.pop()
    found: list[list[Any]] = results(
        [look.remote(_parts, kind, files[n : n + 32], options) for n in range(0, len(files), 32)]
    )
    parts = [part for some in found for part in some]
    schema = _common_schema(parts)
    if types and (unknown := [name for name in types if name not in schema.names]):
        raise DataError(f"{path}: types are given of {unknown}, which are no columns of it")
    for name, given in ({} if raw else types or {}).items():
        number = schema.get_field_index(name)
        schema = schema.set(number, schema.field(number).with_type(normal_type(given)))
    parts = [replace(part, columns=schema) for part in parts]
    if all(part.file.size == 0 or _rowless(part) for part in parts):
        raise DataError(f"{path}: has columns but no rows. Give a file with at least one row")
    if kind in ("csv", "json"):
        parts = _cut(parts, raw)
    lineage = Lineage.of_files(
        files, kind, {"types": types, "null_values": null_values, "raw": raw}
    )
    table = Table.planned(parts, parts[0].schema, (), lineage)
    if columns is None:
        return table
    if missing := [name for name in columns if name not in schema.names]:
        raise DataError(
            f"{path}: lacks the columns {missing}; it has {schema.names[:20]}. Rename its "
            "columns or give another file"
        )
    origin = table.schema.names[len(schema) :]
    return table.select([*columns, *origin])


def _format(file: File) -> Format:
    names = Path(file.path).name.lower().split(".")[1:]
    while names and names[-1] in _COMPRESSED:
        names.pop()
    if not names or names[-1] not in _FORMATS:
        raise DataError(
            f"{file.name}: the format is not known by its name; give file_format='csv', 'json', "
            "'parquet' or 'arrow'"
        )
    return _FORMATS[names[-1]]


def _parts(kind: Format, files: Sequence[File], options: _csv.CsvOptions) -> list[Any]:
    """The parts of files, in a task; CSV and JSON are cut later."""
    parts: list[Any] = []
    for file in files:
        if kind == "csv":
            schema, start = _csv.inspect(file, options)
            stop = file.size if _csv.splittable(file, options) else -1
            parts.append(_csv.CsvPart(file, schema, options, start, stop))
        elif kind == "json":
            schema = _formats.inspect_json(file)
            parts.append(_formats.JsonPart(file, schema, options.raw, 0, file.size))
        elif kind == "parquet":
            parts += _formats.parquet_parts(file, options.raw)
        else:
            parts += _formats.arrow_parts(file, options.raw)
    return parts


def _rowless(part: Any) -> bool:
    if isinstance(part, (_csv.CsvPart, _formats.JsonPart)):
        return part.start == part.stop
    return not (part.groups if isinstance(part, _formats.ParquetPart) else part.batches)


def _common_schema(parts: Sequence[Any]) -> pa.Schema:
    """One schema of all files; numbers may be wider in some.

    Raises:
        DataError: A file has other columns than the first, or a type that does not fit.
    """
    import pyarrow as pa

    first, schemas = parts[0], {part.file: part.columns for part in parts}
    wanted = first.columns
    for file, schema in schemas.items():
        missing = [name for name in wanted.names if name not in schema.names]
        new = [name for name in schema.names if name not in wanted.names]
        if missing or new:
            raise DataError(
                f"{file.name}: lacks the columns {missing[:5]} and has {new[:5]} besides, compared "
                f"with {first.file.name}. Read files of one kind together"
            )
        for number, field in enumerate(wanted):
            given = schema.field(field.name).type
            if given == field.type or (isinstance(first, _csv.CsvPart) and pa.types.is_null(given)):
                continue
            try:
                both = pa.unify_schemas(
                    [pa.schema([("x", field.type)]), pa.schema([("x", given)])],
                    promote_options="permissive",
                )
            except pa.ArrowException:
                raise DataError(
                    f"{file.name}: the column {field.name!r} is {given}, in {first.file.name} it "
                    f"is {field.type}. Convert one, or give types={{{field.name!r}: ...}} for CSV"
                ) from None
            wanted = wanted.set(number, field.with_type(both.field("x").type))
    return wanted


def _cut(parts: Sequence[Any], raw: bool) -> list[Any]:
    """Large files in parts that start where records do; scanned in tasks."""
    task, size = value_task("scan"), _csv.PART_BYTES
    large = [p for p in parts if p.stop - p.start > size]
    ranges = [
        (part, start, min(start + size, part.stop))
        for part in large
        for start in range(part.start, part.stop, size)
    ]
    quoting = isinstance(parts[0], _csv.CsvPart)  # JSON has no line end within a value
    scans = results(
        [task.remote(_csv.scan, part.file, a, b, quoting, raw) for part, a, b in ranges]
    )
    cut: list[Any] = []
    for part in parts:
        mine = [(a, s) for (p, a, _), s in zip(ranges, scans, strict=True) if p is part]
        pieces, numbered = _csv.cut(part, mine) if mine else ([part], True)
        if raw and not numbered:
            count = value_task("count")
            counts = results([count.remote(_csv.count_records, p, quoting) for p in pieces])
            firsts = [sum(counts[:number]) for number in range(len(pieces))]
            pieces = [replace(p, first_row=f) for p, f in zip(pieces, firsts, strict=True)]
        cut += pieces
    return cut
