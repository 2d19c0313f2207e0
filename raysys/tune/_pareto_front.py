"""The Pareto front."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates, ascending.

    Larger is better in every coordinate. A point dominates another if it is at least as good in
    all coordinates and better in one; of equal points the first is on the front.
    """
    # A dominating point is larger in lexicographic order, so one pass meets it first.
    order = sorted(range(len(points)), key=lambda index: (tuple(points[index]), -index))
    front: list[int] = []
    for index in reversed(order):
        if not any(
            all(a >= b for a, b in zip(points[best], points[index], strict=True)) for best in front
        ):
            front.append(index)
    return sorted(front)
