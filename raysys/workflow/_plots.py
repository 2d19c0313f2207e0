"""Plots as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any


def curves(title: str, lines: Mapping[str, Sequence[float]]) -> bytes:
    """One line a name, over steps from 1."""
    figure, axes = _figure(title)
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axes.set_xlabel("epoch")
    axes.legend()
    return _png(figure)


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> bytes:
    """A group of bars for each measure, one bar for each name."""
    figure, axes = _figure(title)
    measures = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for place, (name, values) in enumerate(groups.items()):
        at = [group + place * width for group in range(len(measures))]
        axes.bar(at, [values[measure] for measure in measures], width, label=name)
    middle = width * (len(groups) - 1) / 2
    axes.set_xticks([group + middle for group in range(len(measures))], measures)
    axes.legend()
    return _png(figure)


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
