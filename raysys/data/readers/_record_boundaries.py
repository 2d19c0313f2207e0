"""Boundaries of records of CSV and JSON lines in the bytes of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data.readers._files import File

_QUOTE, _LINE_FEED, _RETURN = b'"\n\r'


def record_ends(data: bytes, delimiter: str | None) -> tuple[np.ndarray, bool]:
    """Places after the line ends that end a record, and whether a quote is open at the end.

    A quote opens a value only at the value's start, as for Arrow's parser: in `5" pipe` it is a
    character. `data` starts with a record; `delimiter` is None for lines without quoting.
    """
    ends = _line_ends(data)
    if delimiter is None or b'"' not in data:
        return ends, False
    quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == _QUOTE)
    if _regular(data, quotes[::2], delimiter):
        return ends[np.searchsorted(quotes, ends) % 2 == 0], len(quotes) % 2 == 1
    starts, stops, is_open = _quoted(data, delimiter)
    inside = np.searchsorted(starts, ends) - np.searchsorted(stops, ends)
    return ends[inside == 0], is_open


def count_records(data: bytes, delimiter: str | None) -> int:
    """Number of records, without empty lines, and blank ones if the delimiter is None."""
    if delimiter is None:
        return sum(1 for line in data.split(b"\n") if line.strip())
    ends, _ = record_ends(data, delimiter)
    if not len(ends) or ends[-1] < len(data):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1]])
    first = np.frombuffer(data + b"\n", np.uint8)[starts]
    blank = (ends == starts) | (first == _LINE_FEED) | (first == _RETURN)
    return int((~blank).sum())


def _line_ends(data: bytes) -> np.ndarray:
    text = np.frombuffer(data, np.uint8)
    if b"\r" not in data:
        return np.flatnonzero(text == _LINE_FEED) + 1
    lone = (text == _RETURN) & np.append(text[1:] != _LINE_FEED, True)
    return np.flatnonzero((text == _LINE_FEED) | lone) + 1


def _regular(data: bytes, openings: np.ndarray, delimiter: str, before: int = _LINE_FEED) -> bool:
    """Whether every second quote starts a value or follows one that it doubles."""
    text = np.frombuffer(data, np.uint8)
    previous = np.where(openings > 0, text[openings - 1], before)
    return bool(np.isin(previous, [ord(delimiter), _LINE_FEED, _RETURN, _QUOTE]).all())


def _quoted(data: bytes, delimiter: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Starts and ends of the quoted values, and whether the last one is open."""
    mark = re.escape(delimiter.encode())
    pattern = rb'(?:\A|(?<=[%b\r\n]))"[^"]*(?:""[^"]*)*("?)' % mark
    matches = list(re.finditer(pattern, data))
    spans = np.array([match.span() for match in matches], np.int64).reshape(-1, 2)
    return spans[:, 0], spans[:, 1], bool(matches) and not matches[-1][1]


@dataclass(frozen=True)
class Scan:
    """Quotes and lines in a range of bytes.

    Pairs are for ranges that start outside of a quoted value, and inside.

    Attributes:
        quotes: Number of quotes.
        after: First place after a line end outside of quotes; None without one.
        regular: Whether all quotes open values, close them or are doubled within them.
        lines: Number of line ends.
        plain: Whether each line is a record: no quotes, empty lines or lone returns.
    """

    quotes: int
    after: tuple[int | None, int | None]
    regular: tuple[bool, bool]
    lines: int
    plain: bool


def scan(file: File, start: int, stop: int, delimiter: str | None, numbered: bool = True) -> Scan:
    """Scan a range of a file, which may start anywhere, for places to cut it.

    Lines are counted only if rows are `numbered`.
    """
    data = file.read_range(start, stop)
    after = data.find(b"\n") + 1 or None
    if delimiter is None or (b'"' not in data and not numbered):
        return Scan(0, (after, None), (True, True), 0, False)
    if b'"' not in data:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_FEED)
        blank = data.startswith(b"\n") or bool((np.diff(ends) == 1).any())
        plain = not blank and b"\r" not in data
        if b"\r" in data:  # Windows' line ends
            plain = not (b"\n\r\n" in data or data.startswith(b"\r") or blank)
            plain &= data.count(b"\r\n") == data.count(b"\r")
        return Scan(0, (after, None), (True, True), len(ends), plain)
    text = np.frombuffer(data, np.uint8)
    quotes, ends = np.flatnonzero(text == _QUOTE), np.flatnonzero(text == _LINE_FEED) + 1
    inside = np.searchsorted(quotes, ends) % 2
    places = [ends[inside == state] for state in (0, 1)]
    first, second = [int(p[0]) if len(p) else None for p in places]
    before = file.read_range(start - 1, start)[0] if start else _LINE_FEED
    openings = quotes[::2], quotes[1::2]
    even, odd = [_regular(data, places, delimiter, before) for places in openings]
    return Scan(len(quotes), (first, second), (even, odd), len(ends), False)


def cut(part: Any, scans: Sequence[tuple[int, Scan]]) -> tuple[list[Any], bool] | None:
    """A file's part split into several that start where records do.

    `scans` are start and scan of consecutive ranges of the part. The result has the parts and
    whether their `first_row` is correct; it is None if quotes are irregular, see `walk`.
    """
    starts, rows, inside, lines = [part.start], [0], 0, 0
    for number, (begin, scanned) in enumerate(scans):
        if not scanned.regular[inside]:
            return None
        after = scanned.after[inside]
        if number and after is not None and begin + after < part.stop:
            starts.append(begin + after)
            rows.append(lines + 1)
        inside ^= scanned.quotes & 1
        lines += scanned.lines
    return _pieces(part, starts, rows), all(scanned.plain for _, scanned in scans)


def walk(part: Any, delimiter: str, size: int) -> list[Any]:
    """Parts as of `cut`, with their `first_row`, by a sequential read of the part."""
    starts, rows, place, tail = [part.start], [0], part.start, b""
    while place < part.stop:
        tail += part.file.read_range(place, min(place + size, part.stop))
        place = min(place + size, part.stop)
        ends, _ = record_ends(tail, delimiter)
        if place < part.stop and len(ends):
            records, tail = tail[: ends[-1]], tail[ends[-1] :]
            rows.append(rows[-1] + count_records(records, delimiter))
            starts.append(place - len(tail))
    return _pieces(part, starts, rows)


def _pieces(part: Any, starts: Sequence[int], rows: Sequence[int]) -> list[Any]:
    stops = [*starts[1:], part.stop]
    return [
        replace(part, start=start, stop=stop, first_row=row)
        for start, stop, row in zip(starts, stops, rows, strict=True)
        if start < stop or len(starts) == 1
    ]
