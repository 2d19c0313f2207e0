"""Runs as text, in plain columns that other programs can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys.errors import RaysysError
from raysys.tracking import plots
from raysys.tracking._tracked_run import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.tracking._run_records import Record, Runs

_MAIN = 4  # metrics that a list shows
_PANELS = 6
_MOST_WIDE = 60  # characters of a column that stands beside others


def listing(records: Sequence[Record], children: Mapping[str, Sequence[Record]]) -> str:
    """One line a run, its children indented below it."""
    lines = [["run", "experiment", "status", "started", "took", "metrics"]]

    def add(record: Record, depth: int) -> None:
        names = (record.results or record.curves)[:_MAIN]
        main = ", ".join(f"{name} {_number(record.metrics[name])}" for name in names)
        lines.append([
            "  " * depth + record.name, record.experiment, record.status, _moment(record),
            _duration(record.seconds), main,
        ])  # fmt: skip
        for child in children.get(record.id, ()):
            add(child, depth + 1)

    for record in records:
        add(record, 0)
    return _columns(lines)


def details(runs: Runs, record: Record) -> str:
    """All that is known of a run."""
    took = _duration(record.seconds)
    parts = [
        f"{record.name}: {record.status}, experiment {record.experiment}\n"
        f"started {_moment(record)}, took {took}, MLflow's id {record.id}"
    ]
    results = {name: _number(record.metrics[name]) for name in record.results}
    curves = {name: _number(record.metrics[name]) for name in record.curves}
    meters = {
        name: _number(value)
        for name, value in sorted(record.metrics.items())
        if name.startswith(SYSTEM)
    }
    for title, values in (
        ("settings", record.settings),
        ("tags", record.tags),
        ("results", results),
        ("curves, last values", curves),
        ("meters, last values", meters),
    ):
        if values:
            parts.append(f"{title}\n{_columns([['  ' + key, values[key]] for key in values])}")
    if samples := runs.samples(record):
        parts.append("samples of rows\n" + "\n".join(f"  {name}" for name in samples))
    if children := runs.children(record):
        below = listing(children, runs.descendants(children)).splitlines()
        parts.append("parts\n" + "\n".join(f"  {line}" for line in below))
    return "\n\n".join(parts)


def comparison(records: Sequence[Record], metric: str | None) -> str:
    """What differs between runs, a column each, and their metrics side by side.

    Raises:
        RaysysError: No run has the metric.
    """
    _check_metric(records, metric)
    header = [record.name for record in records]
    lines = [["settings that differ", *header]]
    lines += _differing([record.settings for record in records])
    lines += [["", *[""] * len(header)], ["code and data that differ", *header]]
    lines += _differing([record.tags for record in records])
    lines += [["", *[""] * len(header)], ["metrics", *header]]
    names = [metric] if metric else sorted({name for record in records for name in record.metrics})
    for name in sorted(names, key=lambda name: name.startswith(SYSTEM)):
        values = [record.metrics.get(name) for record in records]
        lines.append(["  " + name, *["-" if value is None else _number(value) for value in values]])
    return _columns(lines)


def comparison_plot(runs: Runs, records: Sequence[Record], metric: str | None) -> bytes:
    """The curves of runs in one plot, as PNG.

    Args:
        runs: Where they are read.
        records: The runs.
        metric: The one to show; without it the first six that several runs have as curves.

    Raises:
        RaysysError: There is no curve to show.
    """
    _check_metric(records, metric)
    shared = [
        name
        for name in sorted({name for record in records for name in record.curves})
        if sum(name in record.metrics for record in records) > 1
    ]
    panels: dict[str, dict[str, plots.Curve]] = {}
    for name in [metric] if metric else shared:
        found: dict[str, plots.Curve] = {
            record.name: runs.curve(record, name) for record in records if name in record.metrics
        }
        if any(len(steps) > 1 for steps, _ in found.values()) and len(panels) < _PANELS:
            panels[name] = found
    if not panels:
        raise RaysysError(
            f"there is no curve of {metric!r} to plot: it has one value in each run"
            if metric
            else "the runs have no curve in common to plot: name one with --metric"
        )
    return plots.panels(", ".join(record.name for record in records), panels)


def _check_metric(records: Sequence[Record], metric: str | None) -> None:
    known = sorted({name for record in records for name in record.metrics})
    if metric and metric not in known:
        raise RaysysError(f"no run has a metric {metric!r}; they have: {', '.join(known)}")


def _differing(given: Sequence[Mapping[str, str]]) -> list[list[str]]:
    lines = []
    for name in sorted({name for one in given for name in one}):
        values = [one.get(name, "-") for one in given]
        if len(set(values)) > 1:
            lines.append(["  " + name, *(_short(value) for value in values)])
    return lines or [["  none", *[""] * len(given)]]


def _columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, each column as wide as its widest cell."""
    lines = [[" ".join(cell.splitlines()) for cell in line] for line in lines]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _short(text: str) -> str:
    return text if len(text) <= _MOST_WIDE else f"{text[: _MOST_WIDE - 3]}..."


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.5g}"


def _moment(record: Record) -> str:
    return f"{record.started.astimezone():%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
