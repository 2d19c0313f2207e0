"""Aggregates: partial ones in each block, then one answer for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from raysys.data._lazy_plan import collect, lazy
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    Of = tuple[str, str] | str
# Partial columns are named after the answer; no column of a user's has this in its name.
_MARK = "\x1f"


@dataclass(frozen=True)
class _Function:
    """An aggregate that can be put together from parts.

    Attributes:
        parts: Expressions over a block's rows of a group, by name.
        whole: The answer from the parts of all blocks, given a function that names a part.
    """

    parts: Callable[[pl.Expr], dict[str, pl.Expr]]
    whole: Callable[[Callable[[str], pl.Expr]], pl.Expr]


def _squares(part: Callable[[str], pl.Expr]) -> tuple[pl.Expr, pl.Expr]:
    """Number of values and sum of squared deviations (Chan, Golub & LeVeque, 1979, eq. 2.1)."""
    count, mean = part("count").sum(), (part("mean") * part("count")).sum() / part("count").sum()
    between = (part("count") * (part("mean") - mean) ** 2).sum()
    return count, part("squares").sum() + between


def _moments(column: pl.Expr) -> dict[str, pl.Expr]:
    mean = column.mean()
    return {
        "count": column.count().cast(_float()),
        "mean": mean.fill_null(0.0),
        "squares": ((column - mean) ** 2).sum().cast(_float()),
    }


def _float() -> Any:
    return pl.Float64


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
_WHOLE: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "median": lambda c: c.median(),
    "n_unique": lambda c: c.drop_nulls().n_unique(),
    "list": lambda c: c.implode(),
}
ROWS = "rows"


def checked(
    given: Mapping[str, Of], by: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Aggregates as (column, function) by name.

    Raises:
        DataError: A function or a column is not known, or a name is given twice.
    """
    known = [*_FUNCTIONS, *_WHOLE]
    wanted = {}
    for name, of in given.items():
        if of == ROWS:
            wanted[name] = ("", ROWS)
            continue
        if not (isinstance(of, tuple) and len(of) == 2 and of[1] in known):
            raise DataError(
                f"aggregate {name}: give (column, function) or 'rows', the function one of "
                f"{known}; given: {of!r}"
            )
        if of[0] not in names:
            raise DataError(f"aggregate {name}: {of[0]!r} is no column; there are {names[:20]}")
        wanted[name] = of
    if twice := [name for name in wanted if name in by]:
        raise DataError(f"aggregate: {twice} are columns of `by` and answers: name these otherwise")
    return wanted


def mergeable(wanted: Mapping[str, tuple[str, str]]) -> bool:
    """Whether parts of a group can be put together."""
    return all(function not in _WHOLE for _, function in wanted.values())


def partial(
    frame: pl.LazyFrame, by: Sequence[str], wanted: Mapping[str, tuple[str, str]]
) -> pl.LazyFrame:
    """One row a group of these rows, with the parts of its answers."""
    kinds = frame.collect_schema()
    parts: dict[str, pl.Expr] = {}
    for column, function in dict.fromkeys(wanted.values()):
        if function == ROWS:
            parts[_part("", ROWS)] = pl.len()
            continue
        wide = _wide(column, kinds[column], function)
        for name, expression in _FUNCTIONS[function].parts(wide).items():
            parts[_part(column, name)] = expression
    if not by:
        return frame.select(**parts)
    return frame.group_by(by, maintain_order=True).agg(**parts)


def merge_parts(
    rows: pa.Table, by: Sequence[str], wanted: Mapping[str, tuple[str, str]]
) -> pa.Table:
    """`merged` of a part's rows."""
    return collect(merged(lazy(rows), by, wanted), "aggregate")


def of_rows(rows: pa.Table, by: Sequence[str], wanted: Mapping[str, tuple[str, str]]) -> pa.Table:
    """`whole` of a part's rows."""
    return collect(whole(lazy(rows), by, wanted), "aggregate")


def merged(
    frame: pl.LazyFrame, by: Sequence[str], wanted: Mapping[str, tuple[str, str]]
) -> pl.LazyFrame:
    """The answers, from rows of parts; ascending by group."""
    answers = {}
    for name, (column, function) in wanted.items():
        if function == ROWS:
            answers[name] = pl.col(_part("", ROWS)).sum()
        else:
            answers[name] = _FUNCTIONS[function].whole(
                lambda part, column=column: pl.col(_part(column, part))  # type: ignore[misc]
            )
    if not by:
        return frame.select(**answers)
    return frame.group_by(by, maintain_order=True).agg(**answers).sort(by)


def whole(
    frame: pl.LazyFrame, by: Sequence[str], wanted: Mapping[str, tuple[str, str]]
) -> pl.LazyFrame:
    """The answers, from all rows of each group; ascending by group."""
    kinds = frame.collect_schema()
    simple = {n: of for n, of in wanted.items() if of[1] not in _WHOLE}
    answers = {
        name: _WHOLE[function](pl.col(column))
        for name, (column, function) in wanted.items()
        if function in _WHOLE
    }
    for name, (column, function) in simple.items():
        if function == ROWS:
            answers[name] = pl.len()
        elif function in ("first", "last"):
            answers[name] = getattr(pl.col(column).drop_nulls(), function)()
        else:
            answers[name] = getattr(_wide(column, kinds[column], function), function)()
    ordered = {name: answers[name] for name in wanted}
    if not by:
        return frame.select(**ordered)
    return frame.group_by(by, maintain_order=True).agg(**ordered).sort(by)


def _wide(column: str, kind: Any, function: str) -> pl.Expr:
    """A column in the type that its numbers are added up in, in which they have room."""
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
    """Rows with `window`, the start of each window that they fall into."""
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
    (step, unit), (length, other) = _split(every), _split(period)
    seconds, whole_s = step * _UNIT_S[unit], length * _UNIT_S[other]
    if whole_s < seconds:
        raise DataError(f"window: a period of {period} is shorter than a step of {every}")
    return range(0, -(-whole_s // seconds) * step, step)


def _split(duration: str) -> tuple[int, str]:
    number, unit = duration[:-1], duration[-1:]
    if not number.isdigit() or int(number) < 1 or unit not in _UNIT_S:
        raise DataError(
            f"window: durations are a number and one of {list(_UNIT_S)}, like '15m'; given: "
            f"{duration!r}"
        )
    return int(number), unit
