"""Which columns trees see, and as what numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Objective = Literal[
    "binary:logistic", "multi:softprob",
    "reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:logistic",
    "reg:gamma", "reg:tweedie", "count:poisson",
    "rank:ndcg", "rank:map", "rank:pairwise",
]  # fmt: skip


def has_classes(objective: str) -> bool:
    """Whether labels are classes, of any type, and not numbers."""
    return objective in ("binary:logistic", "multi:softprob")


@dataclass(frozen=True)
class Columns:
    """The parts that a Table's columns play."""

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
    ) -> Columns:
        """Name the features, and check that every column is there and of a type that fits.

        Raises:
            DataError: A column is missing or of a type that trees cannot use, or the objective
                and the group do not go together.
        """
        ranked = objective.startswith("rank:")
        if ranked != (group is not None):
            raise DataError(
                f"{objective} with group={group!r}: ranking needs the column that says which rows "
                "are ranked against each other, and no other objective takes one"
            )
        if ranked and weight:
            raise DataError(f"weight={weight!r}: ranking takes no weights of rows; leave it out")
        roles = {"label": label, "group": group, "weight": weight}
        if missing := {r: n for r, n in roles.items() if n is not None and n not in schema.names}:
            raise DataError(f"{missing}: no such column; the Table has {schema.names[:20]}")
        taken = [name for name in roles.values() if name]
        chosen = tuple(features or [name for name in schema.names if name not in taken])
        if wrong := [name for name in chosen if name in taken or name not in schema.names]:
            raise DataError(f"features {wrong} are no columns or play another part: {roles}")
        if wrong := [name for name in categorical if name not in chosen]:
            raise DataError(f"categorical {wrong}: not among the features {list(chosen)[:20]}")
        return cls(chosen, _categorical(schema, chosen, categorical), label, group, weight)

    @property
    def used(self) -> list[str]:
        """All of them."""
        others = [name for name in (self.label, self.group, self.weight) if name]
        return [*self.features, *others]


@dataclass(frozen=True)
class Coding:
    """Columns as float32 numbers: the same for training, a Table and a single row.

    A category is its place among the values that training met, in their order; another one, like
    a missing value, is NaN.

    Attributes:
        features: Names in the order of the matrix.
        categories: Values of each categorical feature, ascending: strings or integers.
        classes: Values of the label, ascending; None where it is a number.
    """

    features: tuple[str, ...]
    categories: dict[str, list[Any]]
    classes: list[Any] | None = None

    @property
    def kinds(self) -> list[str]:
        """XGBoost's feature types: `c` for categories, `q` for quantities."""
        return ["c" if name in self.categories else "q" for name in self.features]

    def matrix(
        self, columns: Mapping[str, Any] | pa.Table, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Features float32 `(n, features)` of an Arrow table or of equally long columns."""
        names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
        if missing := [name for name in self.features if name not in names]:
            raise DataError(f"features {missing[:20]} are missing; given: {names[:20]}")
        rows = len(columns[self.features[0]])
        found = np.empty((rows, len(self.features)), np.float32) if out is None else out
        for at, name in enumerate(self.features):
            if len(columns[name]) != rows:
                raise DataError(
                    f"column {name!r} has {len(columns[name])} rows, {self.features[0]!r} has "
                    f"{rows}: give columns of one length"
                )
            found[:, at] = self._numbers(name, columns[name])
        return found

    def labels(self, column: Any) -> np.ndarray:
        """The label's numbers, float32 `(n,)`: classes by their place."""
        return numbers_of(column) if self.classes is None else _codes(column, self.classes)

    def _numbers(self, name: str, column: Any) -> np.ndarray:
        try:
            if name in self.categories:
                return _codes(column, self.categories[name])
            return numbers_of(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            wanted = "categories" if name in self.categories else "numbers"
            raise DataError(f"column {name!r} does not hold {wanted}: {error}") from error


def _categorical(
    schema: pa.Schema, features: Sequence[str], declared: Sequence[str]
) -> tuple[str, ...]:
    """Text and dictionaries are categories, integers if they are declared so."""
    found, wrong = [], {}
    for name in features:
        kind = schema.field(name).type
        values = kind.value_type if types.is_dictionary(kind) else kind
        text = types.is_string(values) or types.is_large_string(values)
        listed = types.is_dictionary(kind) or name in declared
        if text or (types.is_integer(values) and listed):
            found.append(name)
        elif listed or not (
            types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
            or types.is_decimal(kind) or types.is_null(kind)
        ):  # fmt: skip
            wrong[name] = str(kind)
    if wrong:
        raise DataError(
            f"features of types that trees cannot use: {wrong}. Categories are text, dictionaries "
            "or integers, and all else numbers: convert these, or name the features to use"
        )
    return tuple(found)


def runs_of(group: Any) -> np.ndarray:
    """Where rows of another group begin: int64 `(groups,)`, from 0."""
    if not len(group):
        return np.empty(0, np.int64)
    codes = group.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = getattr(codes, "indices", codes)
    numbers = codes.to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))


def plain(column: Any) -> Any:
    """An Arrow column without a dictionary."""
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(column, from_pandas=True)
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def numbers_of(column: Any) -> np.ndarray:
    """A column of numbers as float32 `(n,)`, NaN where one is missing."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
        return column.astype(np.float32, copy=False)
    values = plain(column)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        raise pa.ArrowInvalid("it is text")  # which a cast would read as numbers
    numbers = values.cast(pa.float32(), safe=False)
    arrays = numbers.chunks if isinstance(numbers, pa.ChunkedArray) else [numbers]
    found = [array.to_numpy(zero_copy_only=False) for array in arrays]
    return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.float32), *found])


def _codes(column: Any, values: Sequence[Any]) -> np.ndarray:
    """The place of each value, NaN where it is none of them, float32 `(n,)`."""
    known = pa.array(values)
    found = plain(column)
    if pa.types.is_null(found.type) or not values:
        return np.full(len(found), np.nan, np.float32)
    return numbers_of(pc.index_in(found.cast(known.type), value_set=known))
