"""CSV: where files can be cut, what types their columns have, and reading a piece.

Arrow's parser reads; it is one and a half times as fast as polars' and converts times four times
as fast (ten times the flights of 2013, one thread).
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raysys.data._columns import (
    FILE,
    MALFORMED,
    ROW,
    in_order,
    normal_type,
    with_origin,
    with_text_types,
)
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    import pyarrow as pa

    from raysys.data._files import File

PART_BYTES = 32 << 20
_HEAD_BYTES, _PIECES, _PIECE_BYTES = 4 << 20, 8, 256 << 10  # looked at to guess types
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


@dataclass(frozen=True)
class CsvOptions:
    """How text becomes values."""

    delimiter: str = ","
    null_values: tuple[str, ...] = ("",)
    encoding: str = "utf-8"
    raw: bool = False


@dataclass(frozen=True)
class CsvPart:
    """Whole records of a file: bytes `start` to `stop`, -1 for the end; a compressed file whole."""

    file: File
    columns: pa.Schema
    options: CsvOptions
    start: int
    stop: int
    first_row: int = 0

    @property
    def schema(self) -> pa.Schema:
        """Of what `read` gives without a choice of columns."""
        if not self.options.raw:
            return self.columns
        return with_origin(with_text_types(self.columns))

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Parse the piece; only the columns asked for are converted.

        Raises:
            DataError: A line or a value does not fit; with the file and the line.
        """
        data = content(self.file, self.start, self.stop, self.options.encoding)
        if self.options.raw:
            return _read_raw(self, data).select(list(columns or self.schema.names))
        names = self.columns.names if columns is None else list(columns)
        if not names:  # only the number of rows is wanted, and Arrow would take none for all
            return self.read(self.columns.names[:1]).select([])
        if not data.strip(b"\r\n"):
            return self.columns.empty_table().select(names)
        import pyarrow as pa

        try:
            table = _parse(data, self.columns, self.options, names)
        except pa.ArrowInvalid as error:
            raise DataError(_found(self, data, names, str(error))) from None
        return in_order(table, self.columns, names)


def content(file: File, start: int, stop: int, encoding: str) -> bytes:
    """Bytes of a file in UTF-8, without compression."""
    import pyarrow as pa

    suffix = "." + file.path.rpartition(".")[2].lower()
    try:
        if suffix == ".zip":
            data = _unzipped(file)
        elif suffix in _COMPRESSED:
            with file.open() as stream, pa.CompressedInputStream(stream, _COMPRESSED[suffix]) as s:
                data = s.read()
        else:
            data = file.bytes(start, stop if stop >= 0 else file.size)
            start, stop = 0, -1
        data = data[start:] if stop < 0 else data[start:stop]
        if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            return bytes(data)
        return bytes(data).decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: is not {encoding}: {error}. Give its encoding") from None
    except (OSError, LookupError) as error:
        raise DataError(f"{file.name}: cannot be read: {error}") from error


def splittable(file: File, options: CsvOptions) -> bool:
    """Whether pieces can be read on their own."""
    suffix = "." + file.path.rpartition(".")[2].lower()
    wide = options.encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32"))
    return suffix != ".zip" and suffix not in _COMPRESSED and not wide


def inspect(file: File, options: CsvOptions) -> tuple[pa.Schema, int]:
    """Column names and guessed types of a file, and where its first record starts.

    Types are those of all values in a sample: the first 4 MiB and eight pieces of the rest.

    Raises:
        DataError: There is no header, or names repeat.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    whole = splittable(file, options)
    head = content(file, 0, _HEAD_BYTES if whole else -1, options.encoding)
    mark = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    end = record_end(head, mark)
    header = head[mark:end]
    if not header.strip():
        raise DataError(f"{file.name}: is empty, or its first line is. Give a file with a header")
    try:
        names = next(csv.reader(header.decode().splitlines(True), delimiter=options.delimiter))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file.name}: its header cannot be read: {error}") from None
    if len(set(names)) < len(names):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        raise DataError(f"{file.name}: the columns {repeated[:5]} stand twice in its header")
    untyped = pa.schema([pa.field(name, pa.large_string()) for name in names])
    if options.raw:
        return untyped, end
    body = head[end:]
    if whole and len(head) == _HEAD_BYTES:
        body = body[: body.rfind(b"\n") + 1] + b"".join(_pieces(file, options))
    if not body.strip(b"\r\n"):
        return untyped, end
    sample = _parse_options(options)
    sample.invalid_row_handler = lambda _: "skip"  # the reader says where
    try:
        guessed = pc.read_csv(
            pa.BufferReader(body),
            read_options=pc.ReadOptions(
                use_threads=False, column_names=names, block_size=len(body) + 1
            ),
            parse_options=sample,
            convert_options=_convert_options(options),
        ).schema
    except pa.ArrowInvalid as error:
        part = CsvPart(file, untyped, options, end, len(head))
        raise DataError(_found(part, body, names, str(error))) from None
    return pa.schema([pa.field(f.name, normal_type(f.type)) for f in guessed]), end


def _pieces(file: File, options: CsvOptions) -> list[bytes]:
    """Whole lines from places all over a file; a line within quotes costs a guess, no more."""
    if b'"' in file.bytes(0, _PIECE_BYTES):
        return []  # what looks like a line may be within a value
    step = max(1, (file.size - _HEAD_BYTES) // _PIECES)
    starts = [_HEAD_BYTES + number * step for number in range(_PIECES)]
    found = [content(file, s, min(s + _PIECE_BYTES, file.size), options.encoding) for s in starts]
    return [data[data.find(b"\n") + 1 : data.rfind(b"\n") + 1] for data in found]


@dataclass(frozen=True)
class Scan:
    """What a range of bytes says of quotes and lines.

    Attributes:
        quotes: Number of quotes.
        after: First place after a line's end outside of quotes: if the range starts outside
            of a quoted value, and if it starts inside; None if there is no such place.
        lines: Number of line ends.
        blank: Whether there may be empty lines.
    """

    quotes: int
    after: tuple[int | None, int | None]
    lines: int
    blank: bool


def scan(file: File, start: int, stop: int, quoting: bool, counting: bool) -> Scan:
    """Look through a range of a file for places to cut it; lines are counted only if wanted."""
    data = file.bytes(start, stop)
    quotes = data.count(b'"') if quoting else 0
    place = data.find(b"\n") + 1 or None
    after = (_after(data, 0), _after(data, 1)) if quotes else (place, None)
    if not counting:
        return Scan(quotes, after, 0, False)
    blank = b"\n\n" in data or b"\n\r\n" in data or data.startswith((b"\n", b"\r\n"))
    return Scan(quotes, after, data.count(b"\n"), blank)


def _after(data: bytes, inside: int, start: int = 0) -> int | None:
    """The place after the first line end outside of quotes, if `inside` is the state before."""
    place = checked = start
    while (found := data.find(b"\n", place)) >= 0:
        inside ^= data.count(b'"', checked, found) & 1
        checked = place = found + 1
        if not inside:
            return place
    return None


def record_end(data: bytes, start: int) -> int:
    """The place after the record that starts at `start`."""
    found = _after(data, 0, start)
    return len(data) if found is None else found


def cut(part: Any, scans: Sequence[tuple[int, Scan]]) -> tuple[list[Any], bool]:
    """A file's part as several, which start where records do.

    Args:
        part: A part of all records, with `start`, `stop` and `first_row`.
        scans: Start and scan of consecutive ranges of the part.

    Returns:
        The parts, and whether their `first_row` is known: there are no quotes or empty lines.
    """
    starts, rows, inside, lines = [part.start], [0], 0, 0
    for number, (begin, found) in enumerate(scans):
        after = found.after[inside]
        if number and after is not None and begin + after < part.stop:
            starts.append(begin + after)
            rows.append(lines + 1)
        inside ^= found.quotes & 1
        lines += found.lines
    stops = [*starts[1:], part.stop]
    pieces = [
        replace(part, start=start, stop=stop, first_row=row)
        for start, stop, row in zip(starts, stops, rows, strict=True)
    ]
    return pieces, not any(found.quotes or found.blank for _, found in scans)


def count_records(part: Any, quoting: bool) -> int:
    """Number of records of a part: line ends outside of quotes that do not end an empty line."""
    import numpy as np

    data = np.frombuffer(part.file.bytes(part.start, part.stop), np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    if len(data) and data[-1] != ord("\n"):
        ends = np.append(ends, len(data))
    if quoting:
        ends = ends[np.searchsorted(np.flatnonzero(data == ord('"')), ends) % 2 == 0]
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts
    blank = (lengths == 0) | ((lengths == 1) & (data[np.minimum(starts, len(data) - 1)] == 13))
    return int((~blank).sum())


def _parse_options(options: CsvOptions) -> Any:
    import pyarrow.csv as pc

    return pc.ParseOptions(delimiter=options.delimiter, newlines_in_values=True)


def _convert_options(options: CsvOptions, **kw: Any) -> Any:
    import pyarrow.csv as pc

    return pc.ConvertOptions(
        null_values=list(options.null_values), strings_can_be_null=True,
        quoted_strings_can_be_null=False, **kw,
    )  # fmt: skip


def _parse(
    data: bytes, schema: pa.Schema, options: CsvOptions, names: Sequence[str], handler: Any = None
) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as pc

    parse = _parse_options(options)
    if handler:
        parse.invalid_row_handler = handler
    return pc.read_csv(
        pa.BufferReader(data),
        read_options=pc.ReadOptions(
            use_threads=False, column_names=schema.names, block_size=_block_size(data)
        ),
        parse_options=parse,
        convert_options=_convert_options(
            options,
            column_types={field.name: field.type for field in schema},
            include_columns=list(names),
        ),
    )


def _block_size(data: bytes) -> int:
    """A record must fit into a block of the parser's."""
    longest = 1 << 20
    if b"\n" not in data[:longest] or b'"' in data:
        return min(len(data) + 1, (1 << 31) - 1)
    return longest


def _read_raw(part: CsvPart, data: bytes) -> pa.Table:
    """Values as text; a line that cannot be one record is kept as it stands."""
    import numpy as np
    import pyarrow as pa

    schema = with_text_types(part.columns)
    malformed: list[tuple[int, str]] = []
    try:
        data.decode()
    except UnicodeDecodeError:
        data, malformed = _without_undecodable(data)
    undecodable = np.array([row for row, _ in malformed], np.int64)

    def keep(row: Any) -> str:
        malformed.append((int(row.number) - 1, row.text))
        return "skip"

    if data.strip(b"\r\n"):
        table = in_order(_parse(data, schema, part.options, schema.names, keep), schema, None)
    else:
        table = schema.empty_table()
    # The parser numbered the records without the lines that were taken out before.
    ragged = np.array([row for row, _ in malformed[len(undecodable) :]], np.int64)
    ragged = _shifted(ragged, undecodable)
    out = np.sort(np.concatenate([undecodable, ragged]))
    rows = _shifted(np.arange(len(table)), out)
    texts = [text for _, text in malformed]
    bad = pa.table({MALFORMED: pa.array(texts, pa.large_string())})
    numbers = np.concatenate([rows, undecodable, ragged]) + part.first_row
    whole = pa.concat_tables([table, bad], promote_options="default")
    names = pa.array([part.file.name] * len(whole), pa.string()).dictionary_encode()
    whole = whole.append_column(FILE, names).append_column(ROW, pa.array(numbers, pa.int64()))
    if texts:
        whole = whole.take(np.argsort(numbers, kind="stable"))
    return in_order(whole, part.schema, None)


def _shifted(rows: Any, out: Any) -> Any:
    """Numbers among all rows, of rows numbered without those in `out` (ascending)."""
    import numpy as np

    return rows + np.searchsorted(out - np.arange(len(out)), rows, side="right")


def _without_undecodable(data: bytes) -> tuple[bytes, list[tuple[int, str]]]:
    kept, taken, row = [], [], 0
    place = 0
    while place < len(data):
        end = record_end(data, place)
        record = data[place:end]
        place = end
        blank = not record.strip(b"\r\n")
        try:
            record.decode()
            kept.append(record)
        except UnicodeDecodeError:
            taken.append((row, record.rstrip(b"\r\n").decode("utf-8", "backslashreplace")))
        row += not blank
    return b"".join(kept), taken


def _found(part: CsvPart, data: bytes, names: Sequence[str], message: str) -> str:
    """What does not fit, with the line; found by reading once more, since Arrow does not say."""
    file, first = part.file.name, part.start if splittable(part.file, part.options) else 0
    before = part.file.bytes(0, first).count(b"\n") if first else 1
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = before + data.count(b"\n", 0, error.start) + 1
        return (
            f"{file}: line {line} is not UTF-8 (byte {data[error.start]:#04x}). Give its encoding: "
            "read(..., encoding='latin-1'), or check it with raw=True"
        )
    starts = [0]
    while starts[-1] < len(data):
        starts.append(record_end(data, starts[-1]))
    good, bad = 0, len(starts) - 1  # records before `good` parse, those before `bad` do not
    while bad - good > 1:
        middle = (good + bad) // 2
        if _problem(data[starts[good] : starts[middle]], part, names):
            bad = middle
        else:
            good = middle
    problem = _problem(data[starts[good] : starts[bad]], part, names, in_words=True)
    line = before + data.count(b"\n", 0, starts[good]) + 1
    return f"{file}: line {line}: {problem or message}"


def _problem(
    records: bytes, part: CsvPart, names: Sequence[str], in_words: bool = False
) -> str | None:
    """Whether records cannot be parsed; of a single one, what is wrong with it."""
    import pyarrow as pa

    ragged: list[Any] = []

    def keep(row: Any) -> str:
        ragged.append(row)
        return "skip"

    try:
        _parse(records, part.columns, part.options, names, keep)
    except pa.ArrowInvalid:
        if not in_words:
            return "a value"
        text = _parse(records, with_text_types(part.columns), part.options, names)
        for name in names:
            try:
                _parse(records, part.columns, part.options, [name])
            except pa.ArrowInvalid:
                return (
                    f"{name}: {text[name][0].as_py()!r} is no {part.columns.field(name).type}. "
                    f"Give the column's type, types={{{name!r}: pa.string()}}, or what stands for "
                    "a missing value, null_values=['', 'NA'], or check the file with raw=True"
                )
    if ragged:
        return (
            f"{ragged[0].actual_columns} fields where {ragged[0].expected_columns} are expected: "
            f"{ragged[0].text[:80]!r}. Repair it, or check the file with raw=True: such lines "
            "then go to quarantine"
        )
    return None


def _unzipped(file: File) -> bytes:
    import io
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(file.bytes(0, file.size))) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            names = [name for name in names if not name.startswith("__MACOSX")]
            if len(names) != 1:
                raise DataError(
                    f"{file.name}: holds {len(names)} files; give one with a single one"
                )
            return archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise DataError(f"{file.name}: is no zip file, or a truncated one: {error}") from None
