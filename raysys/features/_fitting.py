"""Fitting by passes over the blocks: one for all statistics, four more where quantiles are asked.

A pass is one task a block that gives small values, merged here in block order. Moments, quantiles
and counts are exact: the blocks do not matter. Sums of a target are exact when it is integers or
booleans, and rounded in block order otherwise. Of a column of categories a block reports its
100,000 most frequent, so that counts are exact while no block has more distinct ones.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import DataError
from raysys.features import _exact_statistics as _exact
from raysys.features import _raw_inputs as _inputs
from raysys.features import _target_encoding as _target
from raysys.features._column_groups import signed_log
from raysys.features._transforms import Binned, Numeric, OneHot, TargetEncoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from raysys.data import Table
    from raysys.features._target_encoding import Counts
    from raysys.features._transform_base import State, Transform


def fit(
    table: Table, transforms: Sequence[Transform], row_number: str | None
) -> tuple[list[list[State]], dict[tuple[int, str], Counts]]:
    """What each transform learns of each of its columns, and the counts behind target means.

    Args:
        table: The rows to learn from.
        transforms: What to fit.
        row_number: The column to make folds of; None makes none.
    """
    parts = table.gather(_statistics, transforms, row_number, name="fit_features")
    found = _Found(
        {key: _exact.merged(p["moments"][key] for p in parts) for key in parts[0]["moments"]},
        _quantiles(table, transforms),
        {name: _added(p["categories"][name] for p in parts) for name in parts[0]["categories"]},
        {key: _target.merged([p["targets"][key] for p in parts]) for key in parts[0]["targets"]},
    )
    states = [
        [found.state(number, transform, name) for name in transform.columns]
        for number, transform in enumerate(transforms)
    ]
    return states, found.targets


def check_columns(schema: pa.Schema, transforms: Sequence[Transform]) -> dict[str, str]:
    """The Arrow types of the columns that requests give.

    Raises:
        DataError: The table lacks a column that a transform needs.
    """
    kinds: dict[str, str] = {}
    for transform in transforms:
        for name in transform.needs():
            if name not in schema.names:
                raise DataError(
                    f"{type(transform).__name__} needs the column {name!r}; the table has: "
                    f"{', '.join(schema.names)}"
                )
        kinds |= {name: str(schema.field(name).type) for name in transform.columns}
    return kinds


def _statistics(
    block: pa.Table, transforms: Sequence[Transform], row_number: str | None
) -> dict[str, Any]:
    """What one pass learns of a block."""
    moments: dict[tuple[str, bool], _exact.Moments] = {}
    categories: dict[str, dict[str, int]] = {}
    targets: dict[tuple[int, str], Counts] = {}
    for number, transform in enumerate(transforms):
        for name in transform.columns:
            if isinstance(transform, Numeric | Binned):
                for log in {False, isinstance(transform, Numeric) and transform.log}:
                    if (name, log) not in moments:
                        taken = _inputs.numbers(name, block[name])
                        with np.errstate(over="ignore", invalid="ignore"):
                            taken = signed_log(taken) if log else taken
                            moments[name, log] = _exact.moments(taken, name)
            elif isinstance(transform, OneHot) and name not in categories:
                values, codes = _inputs.categories(name, block[name])
                counts = np.bincount(codes[codes >= 0], minlength=len(values))
                counted: Counter[str] = Counter()
                for value, count in zip(values, counts.tolist(), strict=True):
                    counted[value] += count
                categories[name] = dict(_most(counted, _target.CATEGORY_CAP))
            elif isinstance(transform, TargetEncoded):
                targets[number, name] = _target.counts(block, transform, name, row_number)
    return {"moments": moments, "categories": categories, "targets": targets}


def _most(counts: dict[str, int], most: int) -> list[tuple[str, int]]:
    """The most frequent categories; of equally frequent ones the first by text."""
    there = [(value, count) for value, count in counts.items() if count]
    return sorted(there, key=lambda item: (-item[1], item[0]))[:most]


def _added(parts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def _quantiles(table: Table, transforms: Sequence[Transform]) -> dict[str, dict[float, float]]:
    """Of each column that wants any, its quantiles."""
    wanted: dict[str, set[float]] = {}
    for transform in transforms:
        for name in transform.columns:
            if isinstance(transform, Numeric) and transform.impute == "median":
                wanted.setdefault(name, set()).add(0.5)
            elif isinstance(transform, Binned) and transform.by == "quantile":
                wanted.setdefault(name, set()).update(_steps(transform))
    if not wanted:
        return {}
    asked = {name: sorted(given) for name, given in wanted.items()}

    def count(prefixes: dict[str, list[int]], level: int) -> list[dict[str, list[np.ndarray]]]:
        return table.gather(_bit_counts, prefixes, level, name="fit_quantiles")

    found = _exact.quantiles(asked, count)
    return {
        name: dict(zip(asked[name], values.tolist(), strict=True)) for name, values in found.items()
    }


def _steps(transform: Binned) -> list[float]:
    return np.linspace(0.0, 1.0, transform.bins + 1).tolist()


def _bit_counts(
    block: pa.Table, prefixes: dict[str, list[int]], level: int
) -> dict[str, list[np.ndarray]]:
    return {
        name: _exact.bit_counts(_inputs.numbers(name, block[name]), given, level)
        for name, given in prefixes.items()
    }


class _Found:
    """All statistics, merged; what each transform makes of them."""

    def __init__(
        self,
        moments: dict[tuple[str, bool], _exact.Moments],
        quantiles: dict[str, dict[float, float]],
        categories: dict[str, dict[str, int]],
        targets: dict[tuple[int, str], Counts],
    ):
        self.moments, self.quantiles = moments, quantiles
        self.categories, self.targets = categories, targets

    def state(self, number: int, transform: Transform, name: str) -> State:
        if isinstance(transform, Numeric):
            return self._numeric(transform, name)
        if isinstance(transform, Binned):
            return {"edges": self._edges(transform, name)}
        if isinstance(transform, OneHot):
            most = _most(self.categories[name], transform.most)
            return {"categories": sorted(value for value, _ in most)}
        if isinstance(transform, TargetEncoded):
            return _target.means(self.targets[number, name], transform)
        return {}

    def _numeric(self, transform: Numeric, name: str) -> State:
        raw, taken = self.moments[name, False], self.moments[name, transform.log]
        fill: float | None
        if transform.impute == "mean":
            fill = raw.mean() if raw.known else 0.0
        elif transform.impute == "median":
            fill = self.quantiles[name][0.5] if raw.known else 0.0
        else:
            fill = transform.impute
        if fill is not None:
            array = np.array([fill], np.float64)
            taken = taken.filled(float((signed_log(array) if transform.log else array)[0]))
        center, scale = 0.0, 1.0
        if transform.scale and taken.known:
            center, scale = taken.low, taken.high - taken.low
            if transform.scale == "standard" and scale:
                center, scale = taken.mean(), float(np.sqrt(taken.variance()))
        # None is stored as such: JSON has no NaN.
        return {"fill": fill, "center": center, "scale": scale or 1.0}

    def _edges(self, transform: Binned, name: str) -> np.ndarray:
        """The inner edges, increasing."""
        raw = self.moments[name, False]
        if not raw.known:
            return np.zeros(0)
        if transform.by == "uniform":
            edges = np.linspace(raw.low, raw.high, transform.bins + 1)
        else:
            edges = np.array([self.quantiles[name][step] for step in _steps(transform)])
        return np.unique(edges)[1:-1]
