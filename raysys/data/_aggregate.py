"""Aggregates: partial ones in each block, then one result for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from raysys.data._blocks import block_count
from raysys.data._lazy_plan import LazyOperation, collect, lazy
from raysys.data._shuffle import by_hash, merge
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

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


def _squares(part: Callable[[str], pl.Expr]) -> tuple[pl.Expr, pl.Expr]:
    """Number of values and sum of squared deviations (Chan, Golub & LeVeque, 1979, eq. 2.1)."""
    count, mean = part("count").sum(), (part("mean") * part("count")).sum() / part("count").sum()
    between = (part("count") * (part("mean") - mean) ** 2).sum()
    return count, part("squares").sum() + between


def _moments(column: pl.Expr) -> dict[str, pl.Expr]:
    mean = column.mean()
    return {
        "count": column.count().cast(pl.Float64),
        "mean": mean.fill_null(0.0),
        "squares": ((column - mean) ** 2).sum().cast(pl.Float64),
    }


def _variance(part: Callable[[str], pl.Expr]) -> pl.Expr:
    count, squares = _squares(part)
    return pl.when(count > 1).then(squares / (count - 1))


def _mean(part: Callable[[str], pl.Expr]) -> pl.Expr:
    count = part("count").sum()
    return pl.when(count > 0).then(part("total").sum() / count)


_FUNCTIONS: dict[str, _Function] = {
    "count": _Function(lambda c: {"count": c.count()}, lambda p: p("count").sum()),
    "sum": _Function(lambda c: {"sum": c.sum()}, lambda p: p("sum").sum()),
    "mean": _Function(lambda c: {"total": c.sum(), "count": c.count()}, _mean),
    "min": _Function(lambda c: {"min": c.min()}, lambda p: p("min").min()),
    "max": _Function(lambda c: {"max": c.max()}, lambda p: p("max").max()),
    "var": _Function(_moments, _variance),
    "std": _Function(_moments, lambda p: _variance(p).sqrt()),
    "first": _Function(
        lambda c: {"first": c.drop_nulls().first()}, lambda p: p("first").drop_nulls().first()
    ),
    "last": _Function(
        lambda c: {"last": c.drop_nulls().last()}, lambda p: p("last").drop_nulls().last()
    ),
    "any": _Function(lambda c: {"any": c.any()}, lambda p: p("any").any()),
    "all": _Function(lambda c: {"all": c.all()}, lambda p: p("all").all()),
}
# These need all values of a group in one place.
_UNMERGEABLE: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "median": lambda c: c.median(),
    "n_unique": lambda c: c.drop_nulls().n_unique(),
    "list": lambda c: c.implode(),
}
ROWS = "rows"


def aggregate(
    table: RelationalTable, by: Sequence[str], aggregates: Mapping[str, Aggregation]
) -> list[Any]:
    """(block, meta) refs of one row for each group."""
    groups, names = list(by), table.columns
    results = _checked(aggregates, groups, names)
    if missing := [name for name in groups if name not in names]:
        raise DataError(f"aggregate: no such columns in `by`: {missing}; there are {names[:20]}")
    if all(function not in _UNMERGEABLE for _, function in results.values()):
        rows = table._planned(LazyOperation("aggregate", _partial, (groups, results)))
        finish = _merge_parts
    else:
        rows = table.select(list(dict.fromkeys([*groups, *(c for c, _ in results.values() if c)])))
        finish = _aggregate_rows
    parts = block_count(rows.nbytes()) if groups else 1
    pieces = by_hash(rows.blocks(), (), groups, parts, "aggregate")
    return merge(pieces, finish, groups, results, name="aggregate")


def _checked(
    aggregates: Mapping[str, Aggregation], by: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Aggregates as (column, function) by name.

    Raises:
        DataError: An unknown function or column, or a name that `by` has too.
    """
    functions = [*_FUNCTIONS, *_UNMERGEABLE]
    results = {}
    for name, of in aggregates.items():
        if of == ROWS:
            results[name] = ("", ROWS)
            continue
        if not (isinstance(of, tuple) and len(of) == 2 and of[1] in functions):
            raise DataError(
                f"aggregate {name}: give (column, function) or 'rows', the function one of "
                f"{functions}; given: {of!r}"
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


def _merge_parts(
    rows: pa.Table, by: Sequence[str], results: Mapping[str, tuple[str, str]]
) -> pa.Table:
    """`_merged` of a part's rows."""
    return collect(_merged(lazy(rows), by, results), "aggregate")


def _aggregate_rows(
    rows: pa.Table, by: Sequence[str], results: Mapping[str, tuple[str, str]]
) -> pa.Table:
    """`_aggregated` of a part's rows."""
    return collect(_aggregated(lazy(rows), by, results), "aggregate")


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


def _aggregated(
    frame: pl.LazyFrame, by: Sequence[str], results: Mapping[str, tuple[str, str]]
) -> pl.LazyFrame:
    """The results, from all rows of each group; ascending by group."""
    kinds = frame.collect_schema()
    simple = {n: of for n, of in results.items() if of[1] not in _UNMERGEABLE}
    columns = {
        name: _UNMERGEABLE[function](pl.col(column))
        for name, (column, function) in results.items()
        if function in _UNMERGEABLE
    }
    for name, (column, function) in simple.items():
        if function == ROWS:
            columns[name] = pl.len()
        elif function in ("first", "last"):
            columns[name] = getattr(pl.col(column).drop_nulls(), function)()
        else:
            columns[name] = getattr(_wide(column, kinds[column], function), function)()
    ordered = {name: columns[name] for name in results}
    if not by:
        return frame.select(**ordered)
    return frame.group_by(by, maintain_order=True).agg(**ordered).sort(by)


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
