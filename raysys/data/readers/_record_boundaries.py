"""Where the records of CSV and of JSON lines start and end in a file's bytes."""

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

    A quote opens a value only where the value starts, as for Arrow's parser: in `5" pipe` it is
    a character.

    Args:
        data: From the start of a record on.
        delimiter: CSV's; None for lines without quoting.
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
    """Number of records: empty lines are none, nor are lines of blanks where nothing is quoted."""
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
    """Whether every other quote stands where a value starts, or after one that it doubles."""
    text = np.frombuffer(data, np.uint8)
    previous = np.where(openings > 0, text[openings - 1], before)
    return bool(np.isin(previous, [ord(delimiter), _LINE_FEED, _RETURN, _QUOTE]).all())


def _quoted(data: bytes, delimiter: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Starts and ends of the quoted values, one by one, and whether the last one is open."""
    mark = re.escape(delimiter.encode())
    pattern = rb'(?:\A|(?<=[%b\r\n]))"[^"]*(?:""[^"]*)*("?)' % mark
    found = [(m.start(), m.end(), m.end(1) > m.start(1)) for m in re.finditer(pattern, data)]
    starts = np.array([start for start, _, _ in found], np.int64)
    stops = np.array([stop for _, stop, _ in found], np.int64)
    return starts, stops, bool(found) and not found[-1][2]


@dataclass(frozen=True)
class Scan:
    """What a range of bytes says of quotes and lines.

    Each pair is of a range that starts outside of a quoted value, and of one that starts inside.

    Attributes:
        quotes: Number of quotes.
        after: First place after a line's end outside of quotes; None if there is none.
        regular: Whether all quotes open values, close them or are doubled within them.
        lines: Number of line ends.
        plain: Whether each line is a record: without quotes, empty lines or lone returns.
    """

    quotes: int
    after: tuple[int | None, int | None]
    regular: tuple[bool, bool]
    lines: int
    plain: bool


def scan(file: File, start: int, stop: int, delimiter: str | None, numbered: bool = True) -> Scan:
    """Look through a range of a file, of which `start` may be any place, for places to cut it.

    Lines are counted only if rows are to be `numbered`.
    """
    data = file.read_range(start, stop)
    after = data.find(b"\n") + 1 or None
    if delimiter is None or (b'"' not in data and not numbered):
        return Scan(0, (after, None), (True, True), 0, False)
    if b'"' not in data:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_FEED)
        blank = data.startswith(b"\n") or bool((np.diff(ends) == 1).any())
        plain = not blank and b"\r" not in data
        if b"\r" in data:  # the usual ends of lines on Windows
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
    even, odd = [_regular(data, one, delimiter, before) for one in openings]
    return Scan(len(quotes), (first, second), (even, odd), len(ends), False)


def cut(part: Any, scans: Sequence[tuple[int, Scan]]) -> tuple[list[Any], bool] | None:
    """A file's part as several, which start where records do.

    Args:
        part: A part of all records, with `start`, `stop` and `first_row`.
        scans: Start and scan of consecutive ranges of the part.

    Returns:
        The parts, and whether their `first_row` is known. None if the quotes must be looked at
        one by one, see `walk`.
    """
    starts, rows, inside, lines = [part.start], [0], 0, 0
    for number, (begin, found) in enumerate(scans):
        if not found.regular[inside]:
            return None
        after = found.after[inside]
        if number and after is not None and begin + after < part.stop:
            starts.append(begin + after)
            rows.append(lines + 1)
        inside ^= found.quotes & 1
        lines += found.lines
    return _pieces(part, starts, rows), all(found.plain for _, found in scans)


def walk(part: Any, delimiter: str, size: int) -> list[Any]:
    """What `cut` gives, and the rows' numbers, by going through a part from start to end."""
    starts, rows, place, rest = [part.start], [0], part.start, b""
    while place < part.stop:
        rest += part.file.read_range(place, min(place + size, part.stop))
        place = min(place + size, part.stop)
        ends, _ = record_ends(rest, delimiter)
        if place < part.stop and len(ends):
            done, rest = rest[: ends[-1]], rest[ends[-1] :]
            rows.append(rows[-1] + count_records(done, delimiter))
            starts.append(place - len(rest))
    return _pieces(part, starts, rows)


def _pieces(part: Any, starts: Sequence[int], rows: Sequence[int]) -> list[Any]:
    stops = [*starts[1:], part.stop]
    return [
        replace(part, start=start, stop=stop, first_row=row)
        for start, stop, row in zip(starts, stops, rows, strict=True)
        if start < stop or len(starts) == 1
    ]
