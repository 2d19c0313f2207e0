"""A matrix for xgboost-ray's driver that assigns rows anew when actors come or go."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xgboost_ray import RayDMatrix

from raysys.train.boosting._shard_assignment import ShardAssignment

if TYPE_CHECKING:
    from raysys.train.boosting._boost_inputs import ShardSource


class ShardedMatrix(RayDMatrix):  # type: ignore[misc,unused-ignore]
    """Rows of a Table; an actor receives it as a `ShardAssignment`."""

    def __init__(self, prepare: Callable[[], ShardSource], *, interleaved: bool = False) -> None:
        """Rows that `prepare` returns when they are first needed."""
        self._uid = uuid.uuid4().int
        self._prepare, self._interleaved = prepare, interleaved
        self._source: ShardSource | None = None
        self._positions: dict[int, int] = {}
        self.loaded, self.distributed = False, True

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardAssignment, (self._uid, self.source(), self._interleaved, self._positions)

    def source(self) -> ShardSource:
        """The rows, prepared at the first call."""
        if self._source is None:
            self._source = self._prepare()
        return self._source

    @property
    def has_label(self) -> bool:
        """Always true; xgboost-ray's driver asks."""
        return True

    def assert_enough_shards_for_actors(self, num_actors: int) -> None:
        """Nothing: the number of rows is checked where they are prepared."""

    def assign_shards_to_actors(self, actors: Sequence[Any]) -> bool:
        """Assign the rows to the living actors, which have been asked to start."""
        living = [rank for rank, actor in enumerate(actors) if actor is not None]
        self._positions = {rank: position for position, rank in enumerate(living)}
        self.source()  # in this process, while the actors start
        return True
