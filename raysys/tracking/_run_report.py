"""Reports of runs as text and plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from raysys.console import text_table
from raysys.errors import RaysysError
from raysys.tracking import plots
from raysys.tracking._tracked_run import SYSTEM

if TYPE_CHECKING:
    from raysys.tracking._run_records import RunRecord, Runs

_LISTED_METRICS = 4
_MAX_PANELS = 6
_MAX_WIDTH = 60  # characters of a cell in a comparison


def listing(records: Sequence[RunRecord], children: Mapping[str, Sequence[RunRecord]]) -> str:
    """A table of runs, one a row, children indented below their parents."""
    rows: list[list[str]] = []

    def add(record: RunRecord, depth: int) -> None:
        names = (record.results or record.curves)[:_LISTED_METRICS]
        main = ", ".join(f"{name} {_number(record.metrics[name])}" for name in names)
        rows.append([
            "  " * depth + record.name, record.experiment, record.status, _moment(record),
            _duration(record.seconds), main,
        ])  # fmt: skip
        for child in children.get(record.id, ()):
            add(child, depth + 1)

    for record in records:
        add(record, 0)
    return text_table(["run", "experiment", "status", "started", "took", "metrics"], rows)


def details(runs: Runs, record: RunRecord) -> str:
    """A run's settings, tags, results, curves, samples and children, as text."""
    took = _duration(record.seconds)
    parts = [
        f"{record.name}: {record.status}, experiment {record.experiment}\n"
        f"started {_moment(record)}, took {took}, MLflow run id {record.id}"
    ]

    def numbers(names: Iterable[str]) -> dict[str, str]:
        return {name: _number(record.metrics[name]) for name in names}

    meters = sorted(name for name in record.metrics if name.startswith(SYSTEM))
    for title, values in (
        ("settings", record.settings), ("tags", record.tags), ("results", numbers(record.results)),
        ("curves, last values", numbers(record.curves)), ("meters, last values", numbers(meters)),
    ):  # fmt: skip
        if values:
            rows = text_table(["", ""], [[f"  {key}", value] for key, value in values.items()])
            parts.append("\n".join([title, *rows.splitlines()[1:]]))
    if samples := runs.samples(record):
        parts.append("row samples\n" + "\n".join(f"  {name}" for name in samples))
    if children := runs.children(record):
        below = listing(children, runs.descendants(children)).splitlines()
        parts.append("child runs\n" + "\n".join(f"  {line}" for line in below))
    return "\n\n".join(parts)


def comparison(records: Sequence[RunRecord], metric: str | None) -> str:
    """Differing settings, tags and data of runs, and their metrics, a column for each run.

    Raises:
        RaysysError: No run has the metric.
    """
    _check_metric(records, metric)
    header = [record.name for record in records]
    blank = [""] * (len(header) + 1)
    lines = _differing([record.settings for record in records])
    lines += [blank, ["code and data that differ", *header]]
    lines += _differing([record.tags for record in records])
    lines += [blank, ["metrics", *header]]
    names = [metric] if metric else sorted({name for record in records for name in record.metrics})
    for name in sorted(names, key=lambda name: name.startswith(SYSTEM)):
        values = [record.metrics.get(name) for record in records]
        lines.append(["  " + name, *["-" if value is None else _number(value) for value in values]])
    return text_table(["settings that differ", *header], lines)


def comparison_plot(runs: Runs, records: Sequence[RunRecord], metric: str | None) -> bytes:
    """Curves of several runs in one plot, as PNG.

    Args:
        runs: Store of the runs.
        records: Runs to compare.
        metric: Metric to plot; by default the first six curves that several runs share.

    Raises:
        RaysysError: The runs have no such curve.
    """
    _check_metric(records, metric)
    shared = [
        name
        for name in sorted({name for record in records for name in record.curves})
        if sum(name in record.metrics for record in records) > 1
    ]
    panels: dict[str, dict[str, plots.Curve]] = {}
    for name in [metric] if metric else shared:
        lines: dict[str, plots.Curve] = {
            record.name: runs.curve(record, name) for record in records if name in record.metrics
        }
        if any(len(steps) > 1 for steps, _ in lines.values()) and len(panels) < _MAX_PANELS:
            panels[name] = lines
    if not panels:
        raise RaysysError(
            f"cannot plot {metric!r}: it has a single value in each run; choose a curve"
            if metric
            else "the runs share no curve to plot: choose one with --metric"
        )
    return plots.panels(", ".join(record.name for record in records), panels)


def _check_metric(records: Sequence[RunRecord], metric: str | None) -> None:
    names = sorted({name for record in records for name in record.metrics})
    if metric and metric not in names:
        raise RaysysError(f"no run has a metric {metric!r}; they have: {', '.join(names)}")


def _differing(columns: Sequence[Mapping[str, str]]) -> list[list[str]]:
    lines = []
    for name in sorted({name for column in columns for name in column}):
        values = [column.get(name, "-") for column in columns]
        if len(set(values)) > 1:
            lines.append(["  " + name, *(_short(value) for value in values)])
    return lines or [["  none", *[""] * len(columns)]]


def _short(text: str) -> str:
    return text if len(text) <= _MAX_WIDTH else f"{text[: _MAX_WIDTH - 3]}..."


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.5g}"


def _moment(record: RunRecord) -> str:
    return f"{record.started.astimezone():%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {remainder} s"
    return f"{minutes // 60} h {minutes % 60} min"
