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


def record_lines(data: bytes, ends: np.ndarray) -> np.ndarray:
    """Number of line ends before each record that is not empty, given the ends of records."""
    starts = np.concatenate([[0], ends])
    first = np.frombuffer(data + b"\n", np.uint8)[starts]
    filled = (first != _LINE_FEED) & (first != _RETURN)
    line_ends = _line_ends(data)
    if len(line_ends) == len(ends):
        return np.flatnonzero(filled)
    return np.searchsorted(line_ends, starts[filled], "right")


def count_lines(data: bytes) -> int:
    """Number of line ends: line feeds, with or without a return, and lone returns."""
    text = np.frombuffer(data, np.uint8)
    feeds = text == _LINE_FEED
    if b"\r" not in data:
        return int(np.count_nonzero(feeds))  # a fifth of the time of `bytes.count`
    returns = text == _RETURN
    return int(np.count_nonzero(feeds | returns) - np.count_nonzero(returns[:-1] & feeds[1:]))


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
        after: First place after a line end outside of quotes, and the number of line ends before
            it; None without one.
        regular: Whether all quotes open values, close them or are doubled within them.
        lines: Number of line ends. One of two bytes is in the range of its first.
    """

    quotes: int
    after: tuple[tuple[int, int] | None, tuple[int, int] | None]
    regular: tuple[bool, bool]
    lines: int


def scan(file: File, start: int, stop: int, delimiter: str | None) -> Scan:
    """Scan a range of a file, which may start anywhere, for places to cut it."""
    data = file.read_range(start, stop)
    counted = data.startswith(b"\n") and start > 0 and file.read_range(start - 1, start) == b"\r"
    lines = count_lines(data) - counted

    def after(place: int) -> tuple[int, int] | None:
        return (place, count_lines(data[:place]) - counted) if place else None

    if delimiter is None or b'"' not in data:
        return Scan(0, (after(data.find(b"\n") + 1), None), (True, True), lines)
    text = np.frombuffer(data, np.uint8)
    quotes, ends = np.flatnonzero(text == _QUOTE), np.flatnonzero(text == _LINE_FEED) + 1
    inside = np.searchsorted(quotes, ends) % 2
    places = [ends[inside == state] for state in (0, 1)]
    first, second = [after(int(p[0]) if len(p) else 0) for p in places]
    before = file.read_range(start - 1, start)[0] if start else _LINE_FEED
    openings = quotes[::2], quotes[1::2]
    even, odd = [_regular(data, places, delimiter, before) for places in openings]
    return Scan(len(quotes), (first, second), (even, odd), lines)


def cut(part: Any, scans: Sequence[tuple[int, Scan]]) -> list[Any] | None:
    """A file's part split into several that start where records do.

    `scans` are start and scan of consecutive ranges of the part. None if quotes are irregular, see
    `walk`.
    """
    starts, first_lines, inside, line = [part.start], [part.first_line], 0, part.first_line
    for number, (begin, scanned) in enumerate(scans):
        if not scanned.regular[inside]:
            return None
        after = scanned.after[inside]
        if number and after is not None and begin + after[0] < part.stop:
            starts.append(begin + after[0])
            first_lines.append(line + after[1])
        inside ^= scanned.quotes & 1
        line += scanned.lines
    return _pieces(part, starts, first_lines)


def walk(part: Any, delimiter: str, size: int) -> list[Any]:
    """Parts as of `cut`, by a sequential read of the part."""
    starts, first_lines, place, tail = [part.start], [part.first_line], part.start, b""
    while place < part.stop:
        tail += part.file.read_range(place, min(place + size, part.stop))
        place = min(place + size, part.stop)
        ends, _ = record_ends(tail.removesuffix(b"\r"), delimiter)  # its "\n" may follow
        if place < part.stop and len(ends):
            records, tail = tail[: ends[-1]], tail[ends[-1] :]
            first_lines.append(first_lines[-1] + count_lines(records))
            starts.append(place - len(tail))
    return _pieces(part, starts, first_lines)


def _pieces(part: Any, starts: Sequence[int], first_lines: Sequence[int]) -> list[Any]:
    stops = [*starts[1:], part.stop]
    return [
        replace(part, start=start, stop=stop, first_line=line)
        for start, stop, line in zip(starts, stops, first_lines, strict=True)
        if start < stop or len(starts) == 1
    ]
