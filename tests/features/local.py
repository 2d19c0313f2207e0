"""A substitute for a Table with blocks in this process: fits without a cluster."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa

from raysys.features import Featurizer, FittedFeaturizer
from raysys.features._fitted_featurizer import featurize
from raysys.features._transforms import Transform


class Local:
    def __init__(self, rows: pa.Table, cuts: list[int]):
        bounds = [0, *cuts, len(rows)]
        self.blocks = [rows.slice(first, last - first) for first, last in pairwise(bounds)]
        self.schema = rows.schema

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def fingerprint(self) -> str:
        return "local"

    def materialize(self) -> None:
        """Do nothing: the blocks are in memory."""

    def gather(self, function: Callable[..., Any], *args: Any, name: str) -> list[Any]:
        return [function(block, *args) for block in self.blocks]

    def coordinate(self, function: Callable[..., Any], *args: Any, name: str) -> Any:
        return function(self, *args)


def fit(
    rows: pa.Table | dict[str, Any], *transforms: Transform, cuts: tuple[int, ...] = ()
) -> FittedFeaturizer:
    table = rows if isinstance(rows, pa.Table) else pa.table(rows)
    return Featurizer(transforms).fit(cast("Any", Local(table, list(cuts))))


def bulk(fitted: FittedFeaturizer, rows: pa.Table | dict[str, Any]) -> dict[str, np.ndarray]:
    """Features of rows as a task computes them for a block, by name."""
    table = rows if isinstance(rows, pa.Table) else pa.table(rows)
    features = featurize(table, fitted, {}, {}, [])
    assert features.column_names == list(fitted.feature_names)
    assert set(features.schema.types) == {pa.float32()}
    return {name: features[name].to_numpy() for name in features.column_names}
