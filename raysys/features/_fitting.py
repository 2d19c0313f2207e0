"""Fitting by passes over the blocks: one for all statistics, a few more for quantiles.

A pass is one task a block that returns small values, merged in block order. Moments, quantiles and
counts are exact and independent of the blocks. Sums of a target are exact for integers and
booleans, and rounded in block order otherwise. A block reports the 100,000 most frequent categories
of a column, so that counts are exact while no block has more distinct ones.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.data import quantiles
from raysys.errors import DataError
from raysys.features import _raw_inputs as _inputs
from raysys.features import _target_encoding as _target
from raysys.features._column_groups import signed_log
from raysys.features._exact_moments import Moments, merge_moments, moments
from raysys.features._transforms import Binned, Numeric, OneHot, TargetEncoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from raysys.data import Table
    from raysys.features._target_encoding import TargetCounts
    from raysys.features._transforms import State, Transform

    _MomentsByColumn = dict[tuple[str, bool], Moments]  # of values, or of their logarithms


def fit(
    table: Table, transforms: Sequence[Transform], row_number: str | None
) -> tuple[list[list[State]], dict[tuple[int, str], TargetCounts]]:
    """State of each transform for each of its columns, and the counts behind target means.

    `row_number` is the column that numbers the rows, for folds; None makes no folds.
    """
    parts = table.gather(_statistics, transforms, row_number, name="fit_features")
    blocks, categories, targets = zip(*parts, strict=True)
    learned = _Statistics(
        {key: merge_moments(block[key] for block in blocks) for key in blocks[0]},
        _quantiles(table, transforms),
        {name: _added(block[name] for block in categories) for name in categories[0]},
        {key: _target.merge_counts([block[key] for block in targets]) for key in targets[0]},
    )
    states = [
        [learned.state(number, transform, name) for name in transform.columns]
        for number, transform in enumerate(transforms)
    ]
    return states, learned.targets


def check_columns(schema: pa.Schema, transforms: Sequence[Transform]) -> dict[str, str]:
    """Arrow types of the input columns, by name; refuses a table that lacks a column."""
    kinds: dict[str, str] = {}
    for transform in transforms:
        for name in transform.required_columns():
            if name not in schema.names:
                raise DataError(
                    f"{type(transform).__name__} needs the column {name!r}; the table has: "
                    f"{', '.join(schema.names)}"
                )
        kinds |= {name: str(schema.field(name).type) for name in transform.columns}
    return kinds


def _statistics(
    block: pa.Table, transforms: Sequence[Transform], row_number: str | None
) -> tuple[_MomentsByColumn, dict[str, dict[str, int]], dict[tuple[int, str], TargetCounts]]:
    """Moments, categories and target counts of a block."""
    column_moments: _MomentsByColumn = {}
    categories: dict[str, dict[str, int]] = {}
    targets: dict[tuple[int, str], TargetCounts] = {}
    for number, transform in enumerate(transforms):
        for name in transform.columns:
            if isinstance(transform, Numeric | Binned):
                for log in {False, isinstance(transform, Numeric) and transform.log}:
                    if (name, log) not in column_moments:
                        column = _inputs.numbers(name, block[name])
                        with np.errstate(over="ignore", invalid="ignore"):
                            column = signed_log(column) if log else column
                            column_moments[name, log] = moments(column, name)
            elif isinstance(transform, OneHot) and name not in categories:
                values, codes = _inputs.categories(name, block[name])
                counts = np.bincount(codes[codes >= 0], minlength=len(values))
                counted: Counter[str] = Counter()
                for value, count in zip(values, counts.tolist(), strict=True):
                    counted[value] += count
                categories[name] = dict(_most_frequent(counted, _target.CATEGORY_CAP))
            elif isinstance(transform, TargetEncoded):
                targets[number, name] = _target.target_counts(block, transform, name, row_number)
    return column_moments, categories, targets


def _most_frequent(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """The most frequent categories; the first by text among equally frequent ones."""
    present = [(value, count) for value, count in counts.items() if count]
    return sorted(present, key=lambda item: (-item[1], item[0]))[:limit]


def _added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def _quantiles(table: Table, transforms: Sequence[Transform]) -> dict[str, dict[float, float]]:
    """Values of the quantiles that transforms need, by column and quantile."""
    levels: dict[str, set[float]] = {}
    for transform in transforms:
        for name in transform.columns:
            if isinstance(transform, Numeric) and transform.impute == "median":
                levels.setdefault(name, set()).add(0.5)
            elif isinstance(transform, Binned) and transform.strategy == "quantile":
                levels.setdefault(name, set()).update(_edge_quantiles(transform))
    ordered = {name: sorted(column) for name, column in levels.items()}
    gather = functools.partial(table.gather, name="fit_quantiles")
    return {
        name: dict(zip(ordered[name], values.tolist(), strict=True))
        for name, values in quantiles(gather, _numbers, ordered).items()
    }


def _edge_quantiles(transform: Binned) -> list[float]:
    return np.linspace(0.0, 1.0, transform.n_bins + 1).tolist()


def _numbers(block: pa.Table, name: str) -> np.ndarray:
    return _inputs.numbers(name, block[name])


@dataclass
class _Statistics:
    """Merged statistics of all blocks, from which each transform's state follows."""

    moments: _MomentsByColumn
    quantiles: dict[str, dict[float, float]]
    categories: dict[str, dict[str, int]]
    targets: dict[tuple[int, str], TargetCounts]

    def state(self, number: int, transform: Transform, name: str) -> State:
        if isinstance(transform, Numeric):
            return self._numeric(transform, name)
        if isinstance(transform, Binned):
            return {"edges": self._edges(transform, name)}
        if isinstance(transform, OneHot):
            frequent = _most_frequent(self.categories[name], transform.max_categories)
            return {"categories": sorted(value for value, _ in frequent)}
        if isinstance(transform, TargetEncoded):
            return _target.means(self.targets[number, name], transform)
        return {}

    def _numeric(self, transform: Numeric, name: str) -> State:
        raw, scaled = self.moments[name, False], self.moments[name, transform.log]
        fill: float | None
        if transform.impute == "mean":
            fill = raw.mean() if raw.present else 0.0
        elif transform.impute == "median":
            fill = self.quantiles[name][0.5] if raw.present else 0.0
        else:
            fill = transform.impute
        if fill is not None:
            array = np.array([fill], np.float64)
            scaled = scaled.filled(float((signed_log(array) if transform.log else array)[0]))
        center, scale = 0.0, 1.0
        if transform.scale and scaled.present:
            center, scale = scaled.low, scaled.high - scaled.low
            if transform.scale == "standard" and scale:
                center, scale = scaled.mean(), float(np.sqrt(scaled.variance()))
        # None is stored as such: JSON has no NaN.
        return {"fill": fill, "center": center, "scale": scale or 1.0}

    def _edges(self, transform: Binned, name: str) -> np.ndarray:
        """The inner edges, increasing."""
        raw = self.moments[name, False]
        if not raw.present:
            return np.zeros(0)
        if transform.strategy == "uniform":
            edges = np.linspace(raw.low, raw.high, transform.n_bins + 1)
        else:
            edges = np.array([self.quantiles[name][step] for step in _edge_quantiles(transform)])
        return np.unique(edges)[1:-1]
