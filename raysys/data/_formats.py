"""JSON lines, Parquet and Arrow files: what is in them, and reading a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.data._blocks import BLOCK_BYTES
from raysys.data._columns import FILE, MALFORMED, ROW, in_order, normal_schema, with_origin
from raysys.data._plan import frame_of
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    import pyarrow as pa

    from raysys.data._files import File

_SAMPLE_BYTES = 4 << 20


@dataclass(frozen=True)
class JsonPart:
    """Whole lines of a file, each an object: bytes `start` to `stop`."""

    file: File
    columns: pa.Schema
    raw: bool
    start: int
    stop: int
    first_row: int = 0

    @property
    def schema(self) -> pa.Schema:
        """Of what `read` gives without a choice of columns."""
        return with_origin(self.columns) if self.raw else self.columns

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Parse the lines.

        Raises:
            DataError: A line is no object, or a value has another type; unless read raw.
        """
        import pyarrow as pa

        data = self.file.bytes(self.start, self.stop)
        malformed: list[tuple[int, str]] = []
        try:
            table = _parse_json(data, self.columns)
        except pa.ArrowInvalid:
            data, malformed = _without_bad_lines(data, self.columns)
            if not self.raw:
                row, text = malformed[0]
                raise DataError(
                    f"{self.file.name}: row {self.first_row + row}: {text[:80]!r} does not fit the "
                    f"columns {self.columns.names[:20]!s}. Repair it, or check the file with "
                    "raw=True: such lines then go to quarantine"
                ) from None
            table = _parse_json(data, self.columns)
        if self.raw:
            table = _with_rows(table, self, malformed)
        return in_order(table, self.schema, columns)


@dataclass(frozen=True)
class ParquetPart:
    """Row groups of a file."""

    file: File
    columns: pa.Schema
    raw: bool
    groups: tuple[int, ...]
    first_row: int = 0

    @property
    def schema(self) -> pa.Schema:
        """Of what `read` gives without a choice of columns."""
        return with_origin(self.columns) if self.raw else self.columns

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Read the columns; of row groups where no row passes the predicate, its columns only."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(columns or self.schema.names)
        try:
            with self.file.open() as stream:
                source, groups = pq.ParquetFile(stream), self.groups
                if predicate is not None and not self.raw:
                    needed = predicate.meta.root_names()
                    groups = tuple(
                        group
                        for group in groups
                        if frame_of(self._rows(source, (group,), needed))
                        .select(predicate.any())
                        .item()
                    )
                    if not groups:
                        return in_order(self.columns.empty_table(), self.columns, names)
                table = self._rows(source, groups, names)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.file.name}: cannot be read as Parquet: {error}") from error
        if self.raw:
            table = _with_rows(table, self, [])
        return in_order(table, self.schema, names)

    def _rows(self, source: Any, groups: Sequence[int], names: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        inside = [name for name in names if name in source.schema_arrow.names]
        table = source.read_row_groups(list(groups), columns=inside, use_threads=False)
        for name, value in self.file.keys().items():
            if name in names and name not in inside:
                kind = self.columns.field(name).type
                column = pa.array([value], pa.string()).cast(kind)[0]
                table = table.append_column(name, pa.repeat(column, len(table)))
        return in_order(table, self.columns, [n for n in names if n in self.columns.names])


@dataclass(frozen=True)
class ArrowPart:
    """Record batches of an Arrow (IPC, Feather) file."""

    file: File
    columns: pa.Schema
    raw: bool
    batches: tuple[int, ...]
    first_row: int = 0

    @property
    def schema(self) -> pa.Schema:
        """Of what `read` gives without a choice of columns."""
        return with_origin(self.columns) if self.raw else self.columns

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Read the batches."""
        import pyarrow as pa

        try:
            with self.file.open() as stream:
                source = pa.ipc.open_file(stream)
                made = [source.get_batch(number) for number in self.batches]
                table = pa.Table.from_batches(made, source.schema)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.file.name}: cannot be read as Arrow: {error}") from error
        if self.raw:
            table = _with_rows(table, self, [])
        return in_order(table, self.schema, columns)


def inspect_json(file: File) -> pa.Schema:
    """Columns of a file of JSON lines, by its first 4 MiB."""
    import pyarrow as pa
    import pyarrow.json as pj

    data = file.bytes(0, min(_SAMPLE_BYTES, file.size))
    if len(data) < file.size:
        data = data[: data.rfind(b"\n") + 1]
    lines = data.split(b"\n")
    if not data.strip():
        raise DataError(f"{file.name}: is empty. Give a file of one JSON object a line")
    try:
        schema = pj.read_json(
            pa.BufferReader(data), pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        ).schema
    except pa.ArrowInvalid as error:
        for number, line in enumerate(lines, 1):
            try:
                pj.read_json(pa.BufferReader(line + b"\n")) if line.strip() else None
            except pa.ArrowInvalid as inner:
                raise DataError(f"{file.name}: line {number}: {inner}") from None
        raise DataError(f"{file.name}: its values have no common types: {error}") from None
    return normal_schema(schema)


def parquet_parts(file: File, raw: bool) -> list[ParquetPart]:
    """A file as parts of about a block's size, of whole row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open() as stream:
            source = pq.ParquetFile(stream)
            schema, about = normal_schema(source.schema_arrow), source.metadata
            sizes = [about.row_group(n).total_byte_size for n in range(about.num_row_groups)]
            rows = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name}: cannot be read as Parquet, it may be truncated: {error}"
        ) from error
    for name, value in file.keys().items():
        if name not in schema.names:
            schema = schema.append(pa.field(name, _key_type(value)))
    groups = _gathered(sizes)
    firsts = [sum(rows[: group[0]]) for group in groups]
    return [ParquetPart(file, schema, raw, g, f) for g, f in zip(groups, firsts, strict=True)] or [
        ParquetPart(file, schema, raw, ())
    ]


def arrow_parts(file: File, raw: bool) -> list[ArrowPart]:
    """A file as parts of about a block's size, of whole record batches."""
    import pyarrow as pa

    try:
        with file.open() as stream:
            source = pa.ipc.open_file(stream)
            batches = [source.get_batch(number) for number in range(source.num_record_batches)]
            sizes, rows = [b.nbytes for b in batches], [b.num_rows for b in batches]
            schema = normal_schema(source.schema)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name}: cannot be read as an Arrow file, it may be truncated: {error}"
        ) from error
    groups = _gathered(sizes)
    firsts = [sum(rows[: group[0]]) for group in groups]
    return [ArrowPart(file, schema, raw, g, f) for g, f in zip(groups, firsts, strict=True)] or [
        ArrowPart(file, schema, raw, ())
    ]


def _gathered(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Consecutive numbers whose sizes make up about a block."""
    groups: list[list[int]] = []
    filled = BLOCK_BYTES
    for number, size in enumerate(sizes):
        if filled + size > BLOCK_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += size
    return [tuple(group) for group in groups]


def _key_type(value: str) -> pa.DataType:
    import pyarrow as pa

    return pa.int64() if value.lstrip("-").isdigit() else pa.large_string()


def _parse_json(data: bytes, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json as pj

    if not data.strip():
        return schema.empty_table()
    return pj.read_json(
        pa.BufferReader(data),
        pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )


def _without_bad_lines(data: bytes, schema: pa.Schema) -> tuple[bytes, list[tuple[int, str]]]:
    """The lines that parse, and the others by row; found by halving."""
    import pyarrow as pa

    lines = [line for line in data.split(b"\n") if line.strip()]
    bad: list[int] = []

    def look(first: int, last: int) -> None:
        try:
            _parse_json(b"\n".join(lines[first:last]), schema)
        except pa.ArrowInvalid:
            if last - first == 1:
                bad.append(first)
                return
            middle = (first + last) // 2
            look(first, middle)
            look(middle, last)

    look(0, len(lines))
    out = set(bad)
    kept = b"\n".join(line for row, line in enumerate(lines) if row not in out)
    return kept, [(row, lines[row].decode("utf-8", "backslashreplace")) for row in bad]


def _with_rows(
    table: pa.Table, part: JsonPart | ParquetPart | ArrowPart, malformed: list[tuple[int, str]]
) -> pa.Table:
    """With the columns that say where each row stood; malformed lines at their places."""
    import numpy as np
    import pyarrow as pa

    count = len(table) + len(malformed)
    out = np.array([row for row, _ in malformed], np.int64)
    rows = np.setdiff1d(np.arange(count), out)
    texts = pa.table({MALFORMED: pa.array([text for _, text in malformed], pa.large_string())})
    whole = pa.concat_tables([table, texts], promote_options="default")
    numbers = np.concatenate([rows, out]) + part.first_row
    names = pa.array([part.file.name] * count, pa.string()).dictionary_encode()
    whole = whole.append_column(FILE, names).append_column(ROW, pa.array(numbers, pa.int64()))
    return whole.take(np.argsort(numbers, kind="stable")) if malformed else whole
