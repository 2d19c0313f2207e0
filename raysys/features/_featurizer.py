"""The definition of all features of a model, and its fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from pydantic import Field

from raysys.arguments import checked
from raysys.features import _fitting
from raysys.features import _target_encoding as _target
from raysys.features._fitted_featurizer import FittedFeaturizer, featurize
from raysys.features._transforms import (
    AnyTransform,
    TargetEncoded,
    Transform,
    check_unique,
)
from raysys.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.features._target_encoding import TargetCounts


class Featurizer(Settings, frozen=True):
    """The features of a model as transforms of columns, without data until it is fitted.

    Attributes:
        transforms: The transforms, in the order of the features.

    Example:
        >>> from raysys.features import *
        >>> featurizer = Featurizer(
        ...     [
        ...         Numeric(["distance", "seats"], impute="median", log=True, scale="standard"),
        ...         Binned(["delay"], n_bins=8),
        ...         OneHot(["carrier"], max_categories=20),
        ...         Hashed(["tailnum"], buckets=64),
        ...         Crossed(["origin", "dest"], buckets=256),
        ...         TargetEncoded(["dest"], target="late", time="time_hour"),
        ...         Calendar(["time_hour"], fields=["month", "weekday", "hour"]),
        ...         Cyclic(["minute_of_day"], period=1440, harmonics=3),
        ...         TextHashed(["title"], buckets=128, ngrams=2),
        ...     ]
        ... )
        >>> fitted, training = featurizer.fit_transform(train, keep=["late"])  # doctest: +SKIP
        >>> fitted.transform(test, keep=["late"])  # doctest: +SKIP
        >>> fitted.transform_one({"distance": 733.0, "carrier": "UA"})  # doctest: +SKIP
    """

    transforms: tuple[AnyTransform, ...] = Field(min_length=1)

    def __init__(self, transforms: Sequence[Transform] = (), **options: Any) -> None:
        super().__init__(transforms=transforms, **options)

    @checked
    def fit(self, table: Table) -> FittedFeaturizer:
        """Learn from a Table, by tasks over its blocks.

        One pass, and up to five more for medians or quantiles. The result does not depend on the
        blocks, except for the rounding of sums of a target that is not an integer, and for
        columns with more than 100,000 categories in one block, of which the most frequent count.

        Raises:
            DataError: The table lacks a column, or a value has the wrong type.
        """
        table.materialize()  # or each of the passes would compute the plan
        return self._fit(table, table, None)[0]

    @checked
    def fit_transform(
        self, table: Table, keep: Sequence[str] = ()
    ) -> tuple[FittedFeaturizer, Table]:
        """Learn from a Table, and compute the features for training a model.

        They differ from those of `transform` in the target encodings only: a row does not see its
        own target, see `TargetEncoded`.

        Args:
            table: Rows with the inputs, and the targets of the encodings.
            keep: Columns to copy unchanged, such as labels and ids.

        Raises:
            DataError: The table lacks a column, or a value has the wrong type.
        """
        table.materialize()  # or each of the passes would compute the plan
        folds = any(isinstance(t, TargetEncoded) and t.time is None for t in self.transforms)
        rows = table.with_row_number(_target.ROW) if folds else table
        fitted, counts = self._fit(table, rows, _target.ROW if folds else None)
        fitted.check_columns(table.schema.names, keep)
        out_of_fold, by_time = {}, {}
        for key, target_counts in counts.items():
            transform = self.transforms[key[0]]
            assert isinstance(transform, TargetEncoded)
            if transform.time is None:
                out_of_fold[key] = _target.out_of_fold(target_counts, transform)
            else:
                by_time[key] = table.map_blocks(
                    _target.by_time, transform, key[1], name="target_by_time"
                )
        features = rows.map_blocks(
            featurize, ray.put(fitted), ray.put(out_of_fold), by_time, list(keep),
            name="fit_transform_features",
        )  # fmt: skip
        return fitted, features

    def _fit(
        self, table: Table, rows: Table, row_number: str | None
    ) -> tuple[FittedFeaturizer, dict[tuple[int, str], TargetCounts]]:
        inputs = _fitting.check_columns(table.schema, self.transforms)
        states, counts = rows.coordinate(
            _fitting.fit, self.transforms, row_number, name="fit_features"
        )
        learned: Any = tuple(tuple(columns) for columns in states)
        fitted = FittedFeaturizer(self, learned, inputs, table.fingerprint(), len(table))
        check_unique(fitted.feature_names)
        return fitted, counts
