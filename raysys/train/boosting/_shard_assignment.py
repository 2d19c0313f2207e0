"""Shards of a Table's rows, assigned to the living actors and read there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import ray

from raysys.train.boosting._feature_columns import group_starts, to_float32

if TYPE_CHECKING:
    from raysys.train.boosting._boost_inputs import ShardSource


class ShardArrays(NamedTuple):
    """Rows of a shard.

    Attributes:
        features: float32 `(n, features)`.
        label: float32 `(n,)`.
        weight: float32 `(n,)`, or None.
        qid: int64 `(n,)`, ascending numbers of the ranking groups, or None.
    """

    features: np.ndarray
    label: np.ndarray
    weight: np.ndarray | None
    qid: np.ndarray | None


@dataclass(frozen=True)
class ShardAssignment:
    """Rows assigned to the living actors.

    Ranking rows are assigned by whole blocks, other rows in shards of equal size: to train on,
    contiguous rows, so that a node fetches its own blocks alone; to evaluate on (`interleaved`),
    every n-th row, because XGBoost's AUC of several processes is the mean of theirs.

    Attributes:
        key: Identity of the matrix.
        source: The blocks.
        interleaved: Whether a shard is every n-th row.
        positions: Position of each living actor, by its rank.
    """

    key: int
    source: ShardSource
    interleaved: bool
    positions: dict[int, int]

    def shard(self, rank: int) -> tuple[int, int] | None:
        """An actor's position and the number of shards; None for an actor without a shard."""
        return (self.positions[rank], len(self.positions)) if rank in self.positions else None

    def load(self, position: int, shards: int) -> ShardArrays:
        """Read a shard, in an actor."""
        blocks, rows, columns, encoding, class_weights = self.source
        pieces = self._pieces(position, shards)
        total = sum(len(range(*piece.indices(rows[number]))) for number, piece in pieces)
        features = np.empty((total, len(encoding.features)), np.float32)
        label = np.empty(total, np.float32)
        weight = np.ones(total, np.float32) if columns.weight else None
        group_sizes = [np.empty(0, np.int64)]
        start = 0
        for number, piece in pieces:
            block = ray.get(blocks[number])
            if piece.step is None:
                block = block.slice(piece.start, piece.stop - piece.start)
            else:
                block = block.take(np.arange(*piece.indices(len(block))))
            target = slice(start, start + len(block))
            encoding.matrix(block, out=features[target])
            label[target] = encoding.labels(block[columns.label])
            if weight is not None:
                weight[target] = to_float32(block[columns.weight])
            if columns.group:
                group_sizes.append(np.diff(group_starts(block[columns.group]), append=len(block)))
            start = target.stop
        if class_weights is not None:
            of_class = np.asarray(class_weights, np.float32)[label.astype(np.int64)]
            weight = of_class if weight is None else weight * of_class
        sizes = np.concatenate(group_sizes)
        qid = np.repeat(np.arange(len(sizes)), sizes) if columns.group else None
        return ShardArrays(features, label, weight, qid)

    def _pieces(self, position: int, shards: int) -> list[tuple[int, slice]]:
        """Numbers of blocks, each with the slice of its rows."""
        rows = self.source.rows
        if self.source.columns.group:
            return [(at, slice(0, rows[at])) for at in range(position, len(rows), shards)]
        if self.interleaved:
            return [(number, slice(position, None, shards)) for number in range(len(rows))]
        total, first, pieces = sum(rows), 0, []
        start, stop = total * position // shards, total * (position + 1) // shards
        for number, count in enumerate(rows):
            low, high = max(start, first) - first, min(stop, first + count) - first
            if low < high:
                pieces.append((number, slice(low, high)))
            first += count
        return pieces
