"""Joins of two blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from raysys.data._blocks import block_count, table_task
from raysys.data._conversions import kind_of
from raysys.data._lazy_plan import collect, lazy
from raysys.data._polars import pl
from raysys.data._shuffle import by_hash, concat
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data._planned_blocks import PlannedBlocks

# Up to this size the right side is sent whole to each task that joins with it.
BROADCAST_BYTES = 64 << 20
How = Literal["inner", "left", "semi", "anti", "full"]


def keys_of(
    on: str | Sequence[str] | Mapping[str, str], left: pa.Schema, right: pa.Schema
) -> dict[str, str]:
    """Key columns, left to right, checked."""
    if isinstance(on, str):
        on = [on]
    keys = dict(on) if isinstance(on, Mapping) else {name: name for name in on}
    for name, partner in keys.items():
        for side, schema, key in (("left", left, name), ("right", right, partner)):
            if key not in schema.names:
                raise DataError(
                    f"join: no such column of the {side} table: {key!r}; it has {schema.names[:20]}"
                )
        mine, theirs = left.field(name).type, right.field(partner).type
        if kind_of(mine) != kind_of(theirs) and not _are_integers(mine, theirs):
            raise DataError(
                f"join: {name!r} is {mine} on the left and {partner!r} is {theirs} on the right: "
                "cast one with with_columns"
            )
    return keys


def _are_integers(*kinds: pa.DataType) -> bool:
    """Whether all are integers that have a common type."""
    if all(pa.types.is_integer(kind) for kind in kinds):
        signed = any(pa.types.is_signed_integer(kind) for kind in kinds)
        return not (signed and any(kind == pa.uint64() for kind in kinds))
    return False


def _widened(
    left: pl.LazyFrame, right: pl.LazyFrame, keys: Mapping[str, str]
) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Both sides with keys cast to a common type."""
    mine, theirs = left.collect_schema(), right.collect_schema()
    for name, partner in keys.items():
        kinds = (mine[name], theirs[partner])
        if kinds[0] != kinds[1] and pl.String in kinds:  # one side is dictionary-encoded text
            left = left.with_columns(pl.col(name).cast(pl.String))
            right = right.with_columns(pl.col(partner).cast(pl.String))
        if kinds[0] != kinds[1] and all(kind.is_integer() for kind in kinds):
            wide = pl.UInt64 if pl.UInt64 in kinds else pl.Int64
            left = left.with_columns(pl.col(name).cast(wide))
            right = right.with_columns(pl.col(partner).cast(wide))
    return left, right


def join_rows(
    left: pl.LazyFrame, right: pl.LazyFrame, keys: Mapping[str, str], how: Any, suffix: str
) -> pl.LazyFrame:
    """The join of two frames, in the left one's order."""
    left, right = _widened(left, right, keys)
    order: Any = "left_right" if how == "full" else "left"
    return left.join(
        right, left_on=list(keys), right_on=list(keys.values()), how=how, suffix=suffix,
        coalesce=True if how in ("left", "inner", "full") else None, maintain_order=order,
    )  # fmt: skip


def join_by_hash(
    left: PlannedBlocks, right: PlannedBlocks, keys: Mapping[str, str], how: How, suffix: str
) -> list[Any]:
    """(block, meta) refs of the join of two Tables whose rows move by the hash of their keys."""
    parts = block_count(left.nbytes() + right.nbytes())
    lefts = by_hash(left.blocks(), (), list(keys), parts, "join")
    rights = by_hash(right.blocks(), (), list(keys.values()), parts, "join")
    task = table_task("join")
    return [
        task.remote(
            _join_pieces, len(lefts), keys, how, suffix,
            *[pieces[part] for pieces in (*lefts, *rights)],
        )
        for part in range(parts)
    ]  # fmt: skip


def _join_pieces(
    lefts: int, keys: Mapping[str, str], how: Any, suffix: str, *pieces: pa.Table
) -> pa.Table:
    """The join of a part's pieces: those of the left side, then those of the right."""
    left, right = lazy(concat(*pieces[:lefts])), lazy(concat(*pieces[lefts:]))
    return collect(join_rows(left, right, keys, how, suffix), "join")
