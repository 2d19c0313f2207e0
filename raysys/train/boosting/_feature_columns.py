"""Feature, label, group and weight columns, and their encoding as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from raysys.errors import DataError

Objective = Literal[
    "binary:logistic", "multi:softprob",
    "reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:logistic",
    "reg:quantileerror", "reg:gamma", "reg:tweedie", "count:poisson",
    "rank:ndcg", "rank:map", "rank:pairwise",
]  # fmt: skip


_ALLOWED = str.maketrans("[]<", "()~")


def is_classification(objective: str) -> bool:
    """Whether labels are classes, of any type, rather than numbers."""
    return objective in ("binary:logistic", "multi:softprob")


@dataclass(frozen=True)
class FeatureColumns:
    """Roles of a Table's columns."""

    features: tuple[str, ...]
    categorical: tuple[str, ...]
    label: str
    group: str | None = None
    weight: str | None = None

    @classmethod
    def of(
        cls,
        schema: pa.Schema,
        objective: str,
        *,
        label: str,
        group: str | None = None,
        weight: str | None = None,
        features: Sequence[str] | None = None,
        categorical: Sequence[str] = (),
    ) -> FeatureColumns:
        """Choose the features, and check that all columns exist and have suitable types.

        Raises:
            DataError: A column is missing or of a type that trees cannot use, or the objective
                and the group do not go together.
        """
        is_ranking = objective.startswith("rank:")
        if is_ranking != (group is not None):
            raise DataError(
                f"{objective} with group={group!r}: ranking requires the column of the groups "
                "whose rows are ranked against each other, and other objectives take none"
            )
        if is_ranking and weight:
            raise DataError(f"weight={weight!r}: ranking takes no row weights; leave it out")
        roles = {"label": label, "group": group, "weight": weight}
        if missing := {r: n for r, n in roles.items() if n is not None and n not in schema.names}:
            raise DataError(f"no such column: {missing}; the Table has {schema.names[:20]}")
        used = [name for name in roles.values() if name]
        chosen = tuple(features or [name for name in schema.names if name not in used])
        if wrong := [name for name in chosen if name in used or name not in schema.names]:
            raise DataError(f"features {wrong}: unknown columns, or columns with a role: {roles}")
        if wrong := [name for name in categorical if name not in chosen]:
            raise DataError(f"categorical {wrong}: not among the features {list(chosen)[:20]}")
        return cls(chosen, _categorical(schema, chosen, categorical), label, group, weight)

    @property
    def used(self) -> list[str]:
        """Names of all columns that have a role."""
        return [*self.features, *(n for n in (self.label, self.group, self.weight) if n)]


@dataclass(frozen=True)
class FeatureEncoding:
    """Encoding of columns as float32: the same for training, a Table and a single row.

    A category becomes its position among the values of the training rows, in ascending order; an
    unknown category, like a missing value, becomes NaN.

    Attributes:
        features: Names in the order of the matrix.
        categories: Values of each categorical feature, ascending: strings or integers.
        classes: Values of the label, ascending; None for numeric labels.
    """

    features: tuple[str, ...]
    categories: dict[str, list[Any]]
    classes: list[Any] | None = None

    @property
    def feature_types(self) -> list[str]:
        """XGBoost's feature types: `c` for categories, `q` for quantities."""
        return ["c" if name in self.categories else "q" for name in self.features]

    @property
    def booster_names(self) -> list[str]:
        """The features' names in the booster: XGBoost refuses `[`, `]` and `<` in them."""
        names, taken = [], set(self.features)
        for name in self.features:
            allowed = name.translate(_ALLOWED)
            while allowed != name and allowed in taken:
                allowed += "_"
            taken.add(allowed)
            names.append(allowed)
        return names

    def matrix(
        self, columns: Mapping[str, Any] | pa.Table, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Features float32 `(n, features)` of an Arrow table or of equally long columns."""
        names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
        if missing := [name for name in self.features if name not in names]:
            raise DataError(f"features {missing[:20]} are missing; the columns are {names[:20]}")
        rows = len(columns[self.features[0]])
        matrix = np.empty((rows, len(self.features)), np.float32) if out is None else out
        for position, name in enumerate(self.features):
            if len(columns[name]) != rows:
                raise DataError(
                    f"column {name!r} has {len(columns[name])} rows, {self.features[0]!r} has "
                    f"{rows}: pass columns of equal length"
                )
            matrix[:, position] = self._encode(name, columns[name])
        return matrix

    def labels(self, column: Any) -> np.ndarray:
        """Labels as numbers, float32 `(n,)`: classes by their position."""
        return to_float32(column) if self.classes is None else _codes(column, self.classes)

    def _encode(self, name: str, column: Any) -> np.ndarray:
        try:
            if name in self.categories:
                return _codes(column, self.categories[name])
            return to_float32(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            expected = "categories" if name in self.categories else "numbers"
            raise DataError(f"column {name!r} does not hold {expected}: {error}") from error


def _categorical(
    schema: pa.Schema, features: Sequence[str], declared: Sequence[str]
) -> tuple[str, ...]:
    """Text and dictionaries are categories, integers if they are declared so."""
    categorical, wrong = [], {}
    for name in features:
        kind = schema.field(name).type
        values = kind.value_type if types.is_dictionary(kind) else kind
        is_text = types.is_string(values) or types.is_large_string(values)
        is_declared = types.is_dictionary(kind) or name in declared
        if is_text or (types.is_integer(values) and is_declared):
            categorical.append(name)
        elif is_declared or not (
            types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
            or types.is_decimal(kind) or types.is_null(kind)
        ):  # fmt: skip
            wrong[name] = str(kind)
    if wrong:
        raise DataError(
            f"features of types that trees cannot use: {wrong}. Categories are text, dictionaries "
            "or integers, and everything else numbers: convert these, or choose the features"
        )
    return tuple(categorical)


def group_starts(group: Any) -> np.ndarray:
    """Rows at which the group changes: int64 `(groups,)`, from 0."""
    if not len(group):
        return np.empty(0, np.int64)
    encoded = group.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = getattr(encoded, "indices", encoded).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))


def decode_dictionary(column: Any) -> Any:
    """An Arrow column without a dictionary."""
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(column, from_pandas=True)
    kind = column.type
    return column.cast(kind.value_type) if types.is_dictionary(kind) else column


def to_float32(column: Any) -> np.ndarray:
    """A column of numbers as float32 `(n,)`, NaN where a value is missing."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
        return column.astype(np.float32, copy=False)
    values = decode_dictionary(column)
    if types.is_string(values.type) or types.is_large_string(values.type):
        raise pa.ArrowInvalid("it is text")  # which a cast would read as numbers
    numbers = values.cast(pa.float32(), safe=False)
    chunks = numbers.chunks if isinstance(numbers, pa.ChunkedArray) else [numbers]
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, np.float32), *arrays])


def _codes(column: Any, values: Sequence[Any]) -> np.ndarray:
    """Position of each value among `values`, NaN for others, float32 `(n,)`."""
    value_set, decoded = pa.array(values), decode_dictionary(column)
    if types.is_null(decoded.type) or not values:
        return np.full(len(decoded), np.nan, np.float32)
    return to_float32(pc.index_in(decoded.cast(value_set.type), value_set=value_set))
