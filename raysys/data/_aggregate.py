"""Aggregates: partial ones in each block, then one result for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.data._blocks import block_count
from raysys.data._lazy_plan import LazyOperation
from raysys.data._polars import pl
from raysys.data._shuffle import by_hash, merge
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raysys.data._relational import RelationalTable

    Aggregation = tuple[str, str] | str
# Separates column and part in the names of partial columns; a control character, so that no
# column of a user has it.
_MARK = "\x1f"


@dataclass(frozen=True)
class _Function:
    """An aggregate that is merged from the parts of blocks.

    Attributes:
        parts: Maps a column to the parts of a block's group, by name.
        merged: The result, from a function that maps a part's name to its column.
    """

    parts: Callable[[pl.Expr], dict[str, pl.Expr]]
    merged: Callable[[Callable[[str], pl.Expr]], pl.Expr]


def _moments(column: pl.Expr) -> dict[str, pl.Expr]:
    mean = column.mean()
    return {
        "values": column.count().cast(pl.Float64),
        "mean": mean.fill_null(0.0),
        "squares": ((column - mean) ** 2).sum().cast(pl.Float64),
    }


def _variance(part: Callable[[str], pl.Expr]) -> pl.Expr:
    """From the sum of squared deviations (Chan, Golub & LeVeque, 1979, eq. 2.1)."""
    count = part("values").sum()
    mean = (part("mean") * part("values")).sum() / count
    between = (part("values") * (part("mean") - mean) ** 2).sum()
    return pl.when(count > 1).then((part("squares").sum() + between) / (count - 1))


def _mean(part: Callable[[str], pl.Expr]) -> pl.Expr:
    count = part("count").sum()
    return pl.when(count > 0).then(part("total").sum() / count)


def _repeated(name: str) -> _Function:
    """A function of which that of the parts is the result."""
    return _Function(lambda c: {name: getattr(c, name)()}, lambda p: getattr(p(name), name)())


_FUNCTIONS: dict[str, _Function] = {
    "count": _Function(lambda c: {"count": c.count()}, lambda p: p("count").sum()),
    "sum": _repeated("sum"),
    "mean": _Function(lambda c: {"total": c.sum(), "count": c.count()}, _mean),
    "min": _repeated("min"),
    "max": _repeated("max"),
    "var": _Function(_moments, _variance),
    "std": _Function(_moments, lambda p: _variance(p).sqrt()),
    "first": _Function(
        lambda c: {"first": c.drop_nulls().first()}, lambda p: p("first").drop_nulls().first()
    ),
    "last": _Function(
        lambda c: {"last": c.drop_nulls().last()}, lambda p: p("last").drop_nulls().last()
    ),
    "any": _repeated("any"),
    "all": _repeated("all"),
    "median": _Function(lambda c: {"median": c.median()}, lambda p: p("median").first()),
    "n_unique": _Function(
        lambda c: {"n_unique": c.drop_nulls().n_unique()}, lambda p: p("n_unique").first()
    ),
    "list": _Function(lambda c: {"list": c.implode()}, lambda p: p("list").first()),
}
_UNMERGEABLE = ("median", "n_unique", "list")  # need all values of a group in one part
ROWS = "rows"


def aggregate(
    table: RelationalTable, by: Sequence[str], aggregates: Mapping[str, Aggregation]
) -> list[Any]:
    """(block, meta) refs of one row for each group."""
    groups, names = list(by), table.columns
    results = _checked(aggregates, groups, names)
    if missing := [name for name in groups if name not in names]:
        raise DataError(f"aggregate: no such columns in `by`: {missing}; there are {names[:20]}")
    partial, merged = (
        LazyOperation("aggregate", function, (groups, results)) for function in (_partial, _merged)
    )
    if mergeable := all(function not in _UNMERGEABLE for _, function in results.values()):
        rows = table._planned(partial)
    else:
        rows = table.select(list(dict.fromkeys([*groups, *(c for c, _ in results.values() if c)])))
    parts = block_count(rows.nbytes()) if groups else 1
    pieces = by_hash(rows.blocks(), (), groups, parts, "aggregate")
    return merge(pieces, merged) if mergeable else merge(pieces, partial, merged)


def _checked(
    aggregates: Mapping[str, Aggregation], by: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Aggregates as (column, function) by name, checked."""
    results = {}
    for name, of in aggregates.items():
        if of == ROWS:
            results[name] = ("", ROWS)
            continue
        if not (isinstance(of, tuple) and len(of) == 2 and of[1] in _FUNCTIONS):
            raise DataError(
                f"aggregate {name}: give (column, function) or 'rows', the function one of "
                f"{list(_FUNCTIONS)}; given: {of!r}"
            )
        if of[0] not in names:
            raise DataError(f"aggregate {name}: no such column: {of[0]!r}; there are {names[:20]}")
        results[name] = of
    if twice := [name for name in results if name in by]:
        raise DataError(f"aggregate: {twice} name columns of `by` and results: rename the results")
    return results


def _partial(
    frame: pl.LazyFrame, by: Sequence[str], results: Mapping[str, tuple[str, str]]
) -> pl.LazyFrame:
    """One row for each group, with the parts of its results."""
    kinds = frame.collect_schema()
    parts: dict[str, pl.Expr] = {}
    for column, function in dict.fromkeys(results.values()):
        if function == ROWS:
            parts[_part("", ROWS)] = pl.len()
            continue
        wide = _wide(column, kinds[column], function)
        for name, expression in _FUNCTIONS[function].parts(wide).items():
            parts[_part(column, name)] = expression
    if not by:
        return frame.select(**parts)
    return frame.group_by(by, maintain_order=True).agg(**parts)


def _merged(
    frame: pl.LazyFrame, by: Sequence[str], results: Mapping[str, tuple[str, str]]
) -> pl.LazyFrame:
    """The results, from rows of parts; ascending by group."""
    columns = {}
    for name, (column, function) in results.items():
        if function == ROWS:
            columns[name] = pl.col(_part("", ROWS)).sum()
        else:
            columns[name] = _FUNCTIONS[function].merged(
                lambda part, column=column: pl.col(_part(column, part))  # type: ignore[misc]
            )
    if not by:
        return frame.select(**columns)
    return frame.group_by(by, maintain_order=True).agg(**columns).sort(by)


def _wide(column: str, kind: Any, function: str) -> pl.Expr:
    """A column cast to a type in which its sums do not overflow."""
    wide: Any = None
    if function in ("mean", "var", "std") and (kind.is_numeric() or kind == pl.Boolean):
        wide = pl.Float64
    elif function == "sum":
        if kind.is_unsigned_integer():
            wide = pl.UInt64
        elif kind.is_integer() or kind == pl.Boolean:
            wide = pl.Int64
        elif kind.is_float():
            wide = pl.Float64
    return pl.col(column) if wide is None else pl.col(column).cast(wide)


def _part(column: str, name: str) -> str:
    return f"{column}{_MARK}{name}"


def windows(frame: pl.LazyFrame, time: str, every: str, period: str | None) -> pl.LazyFrame:
    """Rows with `window`, the start of each window that contains them."""
    _split(every)
    start = pl.col(time).dt.truncate(every)
    if period is None:
        return frame.with_columns(window=start)
    count = _windows_a_row(every, period)
    starts = pl.concat_list([start.dt.offset_by(f"-{n}{_split(every)[1]}") for n in count])
    # A row without a time falls into the window without a start, once.
    starts = pl.when(pl.col(time).is_null()).then(pl.concat_list(start)).otherwise(starts)
    frame = frame.with_columns(window=starts).explode("window")
    within = pl.col("window").dt.offset_by(period) > pl.col(time)
    return frame.filter(within | pl.col(time).is_null())


_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _windows_a_row(every: str, period: str) -> range:
    (step, unit), (length, period_unit) = _split(every), _split(period)
    step_s, period_s = step * _UNIT_S[unit], length * _UNIT_S[period_unit]
    if period_s < step_s:
        raise DataError(f"window: a period of {period} is shorter than a step of {every}")
    return range(0, -(-period_s // step_s) * step, step)


def _split(duration: str) -> tuple[int, str]:
    number, unit = duration[:-1], duration[-1:]
    if not number.isdigit() or int(number) < 1 or unit not in _UNIT_S:
        raise DataError(
            f"window: durations are a number and one of {list(_UNIT_S)}, like '15m'; given: "
            f"{duration!r}"
        )
    return int(number), unit
