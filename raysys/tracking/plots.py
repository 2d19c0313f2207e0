"""Plots as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

Curve = tuple[Sequence[int], Sequence[float]]  # steps, values
Points = Sequence[Mapping[str, Any]]


def curves(title: str, lines: Mapping[str, Sequence[float]]) -> bytes:
    """A plot of one line for each name, over steps from 1."""
    figure, (axes,) = _figure(title)
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axes.set_xlabel("epoch")
    return _png(figure)


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> bytes:
    """A plot of a group of bars for each measure, one bar for each name."""
    figure, (axes,) = _figure(title)
    measures = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for place, (name, values) in enumerate(groups.items()):
        at = [group + place * width for group in range(len(measures))]
        axes.bar(at, [values[measure] for measure in measures], width, label=name)
    middle = width * (len(groups) - 1) / 2
    axes.set_xticks([group + middle for group in range(len(measures))], measures)
    return _png(figure)


def panels(title: str, lines: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """A plot with a panel for each measure, one line for each name, over steps."""
    figure, all_axes = _figure(title, len(lines))
    for axes, (measure, curves_by_name) in zip(all_axes, lines.items(), strict=True):
        for name, (steps, values) in curves_by_name.items():
            axes.plot(steps, values, marker="." if len(steps) < 50 else None, label=name)
        axes.set_ylabel(measure)
    all_axes[-1].set_xlabel("step")
    return _png(figure)


def front(title: str, points: Points, x: str, y: str, chosen: Points) -> bytes:
    """A scatter plot of all points, with those chosen, the Pareto front, as a marked line.

    Points without both numbers, `x` and `y`, are skipped.
    """
    figure, (axes,) = _figure(title)
    tried, best = (
        [(p[x], p[y]) for p in group if p.get(x) is not None and p.get(y) is not None]
        for group in (points, chosen)
    )
    axes.scatter([a for a, _ in tried], [b for _, b in tried], color="tab:gray", label="tried")
    best.sort()
    axes.plot([a for a, _ in best], [b for _, b in best], "o-", color="tab:red", label="front")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return _png(figure)


def _figure(title: str, panels: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 if panels == 1 else 2.5 * panels), layout="constrained")
    axes = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
    axes[0].set_title(title)
    return figure, axes


def _png(figure: Any) -> bytes:
    for axes in figure.axes:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
