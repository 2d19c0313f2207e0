"""Which columns trees see, as what numbers, and the checks that a Table must pass before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from raysys.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.data import Table

Objective = Literal[
    "binary:logistic", "multi:softprob",
    "reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:logistic",
    "reg:gamma", "reg:tweedie", "count:poisson",
    "rank:ndcg", "rank:map", "rank:pairwise",
]  # fmt: skip
ClassWeights = Literal["balanced"] | Mapping[Any, float]

# What labels must lie within. The gain of rank:ndcg, 2^label - 1, must fit into 32 bits.
_RANGES: dict[str, tuple[float, float]] = {
    "reg:logistic": (0, 1),
    "reg:gamma": (float(np.finfo(np.float32).tiny), np.inf),
    "reg:tweedie": (0, np.inf),
    "count:poisson": (0, np.inf),
    "rank:ndcg": (0, 31),
    "rank:map": (0, 1),
    "rank:pairwise": (0, np.inf),
}
_MOST_CLASSES = 1000


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
        import pyarrow as pa

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
        import pyarrow as pa

        try:
            if name in self.categories:
                return _codes(column, self.categories[name])
            return numbers_of(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            wanted = "categories" if name in self.categories else "numbers"
            raise DataError(f"column {name!r} does not hold {wanted}: {error}") from error


class Survey(NamedTuple):
    """What the driver must know of a Table before trees are grown."""

    rows: int
    classes: dict[Any, int]
    categories: dict[str, list[Any]]


def survey(table: Table, columns: Columns, objective: str, *, what: str) -> Survey:
    """Look at every block in a task; what would spoil the trees is refused.

    Args:
        table: The Table; its columns are those of `columns.used` at least.
        columns: The parts that they play.
        objective: XGBoost's.
        what: The Table's name in errors.

    Raises:
        DataError: No rows; labels missing, infinite or not of the objective's kind; weights
            missing or negative; infinite features; groups whose rows do not stand together.
    """
    parts = table.gather(_survey, columns, has_classes(objective), name="boost_survey")
    rows = sum(part["rows"] for part in parts)
    if not rows:
        raise DataError(f"{what}: the Table has no rows")
    if unknown := sum(part["no_label"] for part in parts):
        raise DataError(
            f"{what}: {unknown} of {rows} rows have no label in {columns.label!r} (missing or not "
            "finite). Leave them out: table.filter(pl.col(...).is_finite())"
        )
    if wrong := sum(part["bad_weights"] for part in parts):
        raise DataError(
            f"{what}: {wrong} weights in {columns.weight!r} are missing, infinite or negative"
        )
    if infinite := sorted({name for part in parts for name in part["infinite"]}):
        raise DataError(
            f"{what}: infinite values in {infinite[:20]}: make them missing or bound them"
        )
    _check_range(parts, objective, f"{what}: {columns.label!r}")
    _check_groups(table, columns, parts, what)
    categories = {
        name: sorted({value for part in parts for value in part["categories"][name]})
        for name in columns.categorical
    }
    classes: dict[Any, int] = {}
    for part in parts:
        for value, count in part["classes"]:
            classes[value] = classes.get(value, 0) + count
    if len(classes) > _MOST_CLASSES:
        raise DataError(
            f"{what}: {columns.label!r} has more than {_MOST_CLASSES} values, which are no "
            "classes. To predict numbers use objective='reg:squarederror'"
        )
    return Survey(rows, {value: classes[value] for value in sorted(classes)}, categories)


def check_classes(classes: Mapping[Any, int], objective: str, label: str) -> None:
    """Whether the training Table's classes are as many as the objective wants."""
    if odd := [value for value in classes if not isinstance(value, str | int | float)]:
        raise DataError(f"{label!r} holds {odd[:3]}: classes are text, integers or booleans")
    wanted = "two" if objective == "binary:logistic" else "two or more"
    if len(classes) < 2 or (wanted == "two" and len(classes) > 2):
        other = "multi:softprob" if len(classes) > 2 else "reg:squarederror"
        raise DataError(
            f"{objective} needs {wanted} classes; {label!r} has {len(classes)}: "
            f"{list(classes)[:10]}. For these labels use objective={other!r}"
        )


def check_known(classes: Mapping[Any, int], known: Sequence[Any], label: str) -> None:
    """Whether the validation Table's classes are among the training Table's."""
    if unknown := {value: count for value, count in classes.items() if value not in known}:
        raise DataError(
            f"validation: {label!r} has classes that the training Table lacks (with their rows): "
            f"{unknown}. Leave these rows out, or split so that every class is trained on"
        )


def weights_of(classes: Mapping[Any, int], given: ClassWeights | None) -> list[float] | None:
    """The weight of each class in their order.

    "balanced" is rows / (classes * rows of the class), as scikit-learn has it.
    """
    if given is None:
        return None
    if given == "balanced":
        rows = sum(classes.values())
        return [rows / (len(classes) * count) for count in classes.values()]
    assert isinstance(given, Mapping)
    if set(given) != set(classes) or any(not 0 <= value < np.inf for value in given.values()):
        raise DataError(
            f"class_weights={dict(given)}: give a finite weight that is not negative for each of "
            f"the classes {list(classes)}, or 'balanced'"
        )
    return [float(given[value]) for value in classes]


def _categorical(
    schema: pa.Schema, features: Sequence[str], declared: Sequence[str]
) -> tuple[str, ...]:
    """Text and dictionaries are categories, integers if they are declared so."""
    from pyarrow import types

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


def _check_range(parts: Sequence[dict[str, Any]], objective: str, what: str) -> None:
    low, high = _RANGES.get(objective, (-np.inf, np.inf))
    least = min(part["least"] for part in parts)
    most = max(part["most"] for part in parts)
    if least < low or most > high:
        raise DataError(
            f"{what} goes from {least:g} to {most:g}; {objective} needs labels from {low:g} to "
            f"{high:g}: scale them, or use another objective"
        )


def _check_groups(
    table: Table, columns: Columns, parts: Sequence[dict[str, Any]], what: str
) -> None:
    if columns.group is None:
        return
    runs = sum(part["runs"] for part in parts)
    groups = table.select([columns.group]).distinct().rows
    if runs != groups:
        raise DataError(
            f"{what}: the rows of the {groups} groups of {columns.group!r} stand in {runs} places. "
            f"table.sort({columns.group!r}) brings those of a group together, in one block"
        )


def _survey(block: pa.Table, columns: Columns, classes: bool) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    label = _plain(block[columns.label])
    found: dict[str, Any] = {
        "rows": len(block), "classes": [], "least": np.inf, "most": -np.inf, "bad_weights": 0,
    }  # fmt: skip
    if classes:
        missing = label.is_null(nan_is_null=True)
        counted = pc.value_counts(label.filter(pc.invert(missing)))[: _MOST_CLASSES + 1]
        found["classes"] = [(_value(one["values"]), one["counts"]) for one in counted.to_pylist()]
        found["no_label"] = pc.sum(missing).as_py() or 0
    else:
        try:
            numbers = numbers_of(label)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{columns.label!r} holds {label.type}: this objective predicts numbers. For "
                "classes use 'binary:logistic' or 'multi:softprob'"
            ) from error
        finite = np.isfinite(numbers)
        found["no_label"] = int((~finite).sum())
        if finite.any():
            found["least"] = float(numbers[finite].min())
            found["most"] = float(numbers[finite].max())
    if columns.weight:
        weights = numbers_of(block[columns.weight])
        found["bad_weights"] = int((~(np.isfinite(weights) & (weights >= 0))).sum())
    found["infinite"] = [
        name
        for name in columns.features
        if pa.types.is_floating(block[name].type)
        and pc.any(pc.is_inf(block[name])).as_py()
    ]  # fmt: skip
    found["categories"] = {
        name: pc.unique(_plain(block[name])).drop_null().to_pylist()
        for name in columns.categorical
    }  # fmt: skip
    if columns.group:
        found["runs"] = len(runs_of(block[columns.group]))
    return found


def runs_of(group: Any) -> np.ndarray:
    """Where rows of another group begin: int64 `(groups,)`, from 0."""
    if not len(group):
        return np.empty(0, np.int64)
    codes = group.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = getattr(codes, "indices", codes)
    numbers = codes.to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))


def _value(value: Any) -> Any:
    """A class as it is written: 1.0 of a column of floats is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(column: Any) -> Any:
    """An Arrow column without a dictionary."""
    import pyarrow as pa

    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(column, from_pandas=True)
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def numbers_of(column: Any) -> np.ndarray:
    """A column of numbers as float32 `(n,)`, NaN where one is missing."""
    import pyarrow as pa

    if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
        return column.astype(np.float32, copy=False)
    plain = _plain(column)
    if pa.types.is_string(plain.type) or pa.types.is_large_string(plain.type):
        raise pa.ArrowInvalid("it is text")  # which a cast would read as numbers
    numbers = plain.cast(pa.float32(), safe=False)
    arrays = numbers.chunks if isinstance(numbers, pa.ChunkedArray) else [numbers]
    found = [array.to_numpy(zero_copy_only=False) for array in arrays]
    return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.float32), *found])


def _codes(column: Any, values: Sequence[Any]) -> np.ndarray:
    """The place of each value, NaN where it is none of them, float32 `(n,)`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pa.array(values)
    found = _plain(column)
    if pa.types.is_null(found.type) or not values:
        return np.full(len(found), np.nan, np.float32)
    return numbers_of(pc.index_in(found.cast(known.type), value_set=known))
