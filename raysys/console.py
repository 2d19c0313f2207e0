"""Text for people: lines of progress and tables in plain columns."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Iterable, Sequence

from raysys.imports import lazy_import

rich_console = lazy_import("rich.console")
rich_table = lazy_import("rich.table")


def say(line: str) -> None:
    """Write a line to standard output at once: under `ray job submit` it is streamed."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """Write a line about the work to standard error, so that output stays what was asked for."""
    sys.stderr.write(f"raysys: {line}\n")
    sys.stderr.flush()


def text_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in plain columns that other programs can read, without trailing blanks.

    Args:
        columns: Headings; one that begins with ">" has its column aligned to the right.
        rows: Cells of each row, as many as there are columns; shown by `str`.
    """
    table = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for heading in columns:
        justify = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    buffer = io.StringIO()
    console = rich_console.Console(
        file=buffer, width=10_000, highlight=False, markup=False, emoji=False, color_system=None
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table for notebooks, for use in `_repr_html_`.

    Args:
        columns: Headings, as in `text_table`.
        rows: Cells of each row; shown by `str`, escaped.
        caption: Text above the table.
    """
    right = [' style="text-align: right"' if name.startswith(">") else "" for name in columns]

    def line(tag: str, cells: Iterable[object]) -> str:
        pairs = zip(right, cells, strict=True)
        return "".join(f"<{tag}{style}>{html.escape(str(cell))}</{tag}>" for style, cell in pairs)

    lines = [line("th", (name.removeprefix(">") for name in columns))]
    lines += [line("td", row) for row in rows]
    body = "\n".join(f"<tr>{cells}</tr>" for cells in lines)
    return f"<table>\n<caption>{html.escape(caption)}</caption>\n{body}\n</table>"
