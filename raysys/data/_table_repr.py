"""A Table as text and as HTML, from what is known without computing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysys.data._planned_blocks import PlannedBlocks

_MAX_COLUMNS = 20


def table_text(table: PlannedBlocks) -> str:
    """Size, plan and columns on one line."""
    fields = [f"{name}: {kind}" for name, kind in _fields(table)]
    return f"Table({_summary(table)}; {', '.join(fields)})"


def table_html(table: PlannedBlocks) -> str:
    """The same with a row for each column, for notebooks."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(kind)}</td></tr>"
        for name, kind in _fields(table)
    )
    heading = f"<b>Table</b> {html.escape(_summary(table))}"
    return f"{heading}<table><tr><th>column</th><th>type</th></tr>{cells}</table>"


def _summary(table: PlannedBlocks) -> str:
    rows = table.lineage.rows if table._metas is None else len(table)
    parts = ["rows unknown" if rows is None else f"{rows} rows", f"{len(table._sources)} blocks"]
    if table._metas is None:
        names = [operation.name for operation in table._operations]
        parts.append(f"planned: {' > '.join(names or ['read'])}")
    return ", ".join(parts)


def _fields(table: PlannedBlocks) -> list[tuple[str, str]]:
    fields = [(field.name, str(field.type)) for field in table.schema]
    more = len(fields) - _MAX_COLUMNS
    return [*fields[:_MAX_COLUMNS], *([("...", f"{more} more")] if more > 0 else [])]
