"""Aggregates: partial ones in each block, then one result for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.data._blocks import block_count
from raysys.data._lazy_plan import LazyOperation, frame_of
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
        narrow: The type of the parts and the result, if they are computed in a wider one.
    """

    parts: Callable[[pl.Expr], dict[str, pl.Expr]]
    merged: Callable[[Callable[[str], pl.Expr]], pl.Expr]
    narrow: pl.DataType | None = None


def _count(column: pl.Expr) -> pl.Expr:
    return column.count().cast(pl.Int64)


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
    "count": _Function(lambda c: {"count": _count(c)}, lambda p: p("count").sum()),
    "sum": _repeated("sum"),
    "mean": _Function(lambda c: {"total": c.sum(), "count": _count(c)}, _mean),
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
        lambda c: {"n_unique": c.drop_nulls().n_unique().cast(pl.Int64)},
        lambda p: p("n_unique").first(),
    ),
    "list": _Function(lambda c: {"list": c.implode()}, lambda p: p("list").first()),
}


def _function(name: str, kind: pl.DataType) -> _Function:
    """An aggregate of a column of some type."""
    if name == "sum" and (kind.is_integer() or kind == pl.Boolean):
        return _integer_sum(pl.UInt64() if kind.is_unsigned_integer() else pl.Int64())
    if name == "mean" and kind.is_temporal():
        return _time_mean(kind)
    return _FUNCTIONS[name]


def _integer_sum(kind: pl.DataType) -> _Function:
    """A sum of which an overflow is an error: polars' own wraps around."""
    return _Function(
        lambda c: {"sum": c.cast(pl.Int128).sum()}, lambda p: p("sum").cast(pl.Int128).sum(), kind
    )


def _time_mean(kind: pl.DataType) -> _Function:
    """A mean of dates as times, or of times, exact to their unit."""
    if kind == pl.Date:
        kind = pl.Datetime("us")

    def parts(column: pl.Expr) -> dict[str, pl.Expr]:
        units = column.cast(kind).to_physical().cast(pl.Int64)
        # Two sums, since one of all units would overflow after some thousand rows.
        return {
            "high": (units // _UNITS).sum(),
            "low": (units % _UNITS).sum(),
            "count": _count(column),
        }

    def merged(part: Callable[[str], pl.Expr]) -> pl.Expr:
        high, low, count = (part(name).sum().cast(pl.Int128) for name in ("high", "low", "count"))
        mean = pl.when(count > 0).then((high * _UNITS + low) // count)
        return mean.cast(pl.Int64).cast(kind)

    return _Function(parts, merged)


_UNMERGEABLE = ("median", "n_unique", "list")  # need all values of a group in one part
ROWS = "rows"
_UNITS = 1_000_000_000


def aggregate(
    table: RelationalTable, by: Sequence[str], aggregates: Mapping[str, Aggregation]
) -> list[Any]:
    """(block, meta) refs of one row for each group."""
    groups, names = list(by), table.columns
    results = _checked(aggregates, groups, names)
    if missing := [name for name in groups if name not in names]:
        raise DataError(f"aggregate: no such columns in `by`: {missing}; there are {names[:20]}")
    kinds = dict(frame_of(table.schema.empty_table()).schema)
    partial, merged = (
        LazyOperation("aggregate", function, (groups, results, kinds))
        for function in (_partial, _merged)
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
    frame: pl.LazyFrame,
    by: Sequence[str],
    results: Mapping[str, tuple[str, str]],
    kinds: Mapping[str, pl.DataType],
) -> pl.LazyFrame:
    """One row for each group, with the parts of its results."""
    parts: dict[str, pl.Expr] = {}
    narrow: dict[str, pl.DataType] = {}
    for column, function in dict.fromkeys(results.values()):
        if function == ROWS:
            parts[_part("", ROWS)] = pl.len().cast(pl.Int64)
            continue
        wide = _wide(column, kinds[column], function)
        of = _function(function, kinds[column])
        for name, expression in of.parts(wide).items():
            parts[_part(column, name)] = expression
            if of.narrow is not None:
                narrow[_part(column, name)] = of.narrow
    if not by:
        return frame.select(**parts).cast(narrow)  # type: ignore[arg-type]
    return frame.group_by(by, maintain_order=True).agg(**parts).cast(narrow)  # type: ignore[arg-type]


def _merged(
    frame: pl.LazyFrame,
    by: Sequence[str],
    results: Mapping[str, tuple[str, str]],
    kinds: Mapping[str, pl.DataType],
) -> pl.LazyFrame:
    """The results, from rows of parts; ascending by group."""
    columns: dict[str, pl.Expr] = {}
    narrow: dict[str, pl.DataType] = {}
    for name, (column, function) in results.items():
        if function == ROWS:
            columns[name] = pl.col(_part("", ROWS)).sum()
            continue
        of = _function(function, kinds[column])
        columns[name] = of.merged(
            lambda part, column=column: pl.col(_part(column, part))  # type: ignore[misc]
        )
        if of.narrow is not None:
            narrow[name] = of.narrow
    if not by:
        return frame.select(**columns).cast(narrow)  # type: ignore[arg-type]
    rows = frame.group_by(by, maintain_order=True).agg(**columns)
    return rows.cast(narrow).sort(by)  # type: ignore[arg-type]


def _wide(column: str, kind: Any, function: str) -> pl.Expr:
    """A column cast to a type in which its sums do not overflow."""
    is_mean = function in ("mean", "var", "std") and (kind.is_numeric() or kind == pl.Boolean)
    is_sum = function == "sum" and kind.is_float()
    return pl.col(column).cast(pl.Float64) if is_mean or is_sum else pl.col(column)


def _part(column: str, name: str) -> str:
    return f"{column}{_MARK}{name}"


def windows(frame: pl.LazyFrame, time: str, every: str, period: str | None) -> pl.LazyFrame:
    """Rows with `window`, the start of each window that contains them."""
    _, unit = _split(every)
    kind = frame.collect_schema()[time]
    if not isinstance(kind, (pl.Date, pl.Datetime)):
        raise DataError(f"window: {time!r} is {kind}; give a column of dates or times")
    zone, step = getattr(kind, "time_zone", None) or "UTC", _seconds(every)
    moment = pl.col(time)
    # At a change of clocks, windows of whole hours start at the same local times as on other days,
    # so that one is longer or shorter; those of an hour or less keep their length.
    is_local = zone != "UTC" and step > _UNIT_S["h"] and step % _UNIT_S["h"] == 0
    is_uneven = zone != "UTC" and not is_local and _UNIT_S["h"] % step > 0
    if is_local:
        moment = moment.dt.replace_time_zone(None)
    elif is_uneven:
        moment = moment.dt.convert_time_zone("UTC")
    start = moment.dt.truncate(every)
    if period is None:
        frame = frame.with_columns(window=start)
    else:
        count = _windows_a_row(every, period)
        starts = pl.concat_list([start.dt.offset_by(f"-{n}{unit}") for n in count])
        # A row without a time falls into the window without a start, once.
        starts = pl.when(moment.is_null()).then(pl.concat_list(start)).otherwise(starts)
        frame = frame.with_columns(window=starts).explode("window")
        if _seconds(period) % step:
            within = pl.col("window").dt.offset_by(period) > moment
            frame = frame.filter(within | moment.is_null())
    if is_local:
        frame = frame.with_columns(window=_instant(pl.col("window"), zone))
    return frame.with_columns(pl.col("window").dt.convert_time_zone(zone)) if is_uneven else frame


def _instant(local: pl.Expr, zone: str) -> pl.Expr:
    """The first instant that is not before a local time."""
    first: Any = {"ambiguous": "earliest", "non_existent": "null"}
    hours = pl.duration(hours=3)  # before it, the clocks have not been changed yet
    skipped = (local - hours).dt.replace_time_zone(zone, **first) + hours
    return local.dt.replace_time_zone(zone, **first).fill_null(skipped)


_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _windows_a_row(every: str, period: str) -> range:
    step_s, period_s = _seconds(every), _seconds(period)
    if period_s < step_s:
        raise DataError(f"window: a period of {period} is shorter than a step of {every}")
    step, _ = _split(every)
    return range(0, -(-period_s // step_s) * step, step)


def _seconds(duration: str) -> int:
    number, unit = _split(duration)
    return number * _UNIT_S[unit]


def _split(duration: str) -> tuple[int, str]:
    number, unit = duration[:-1], duration[-1:]
    if not number.isdigit() or int(number) < 1 or unit not in _UNIT_S:
        raise DataError(
            f"window: durations are a number and one of {list(_UNIT_S)}, like '15m'; given: "
            f"{duration!r}"
        )
    return int(number), unit
