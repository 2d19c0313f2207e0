"""What must be known of a Table before trees are grown from it, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError
from raysys.train.boosting._columns import Columns, has_classes, numbers_of, plain, runs_of

if TYPE_CHECKING:
    from raysys.data import Table

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
    label = plain(block[columns.label])
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
        name: pc.unique(plain(block[name])).drop_null().to_pylist()
        for name in columns.categorical
    }  # fmt: skip
    if columns.group:
        found["runs"] = len(runs_of(block[columns.group]))
    return found


def _value(value: Any) -> Any:
    """A class as it is written: 1.0 of a column of floats is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
