"""What xgboost-ray's driver takes for its matrix."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from xgboost_ray import RayDMatrix

from raysys.train.boosting._actor import Deal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raysys.train.boosting._prepare import Prepared


class Shares(RayDMatrix):  # type: ignore[misc,unused-ignore]
    """Rows that are dealt out anew whenever actors have come or gone; an actor gets the deal."""

    def __init__(self, prepare: Callable[[], Prepared], *, mixed: bool = False) -> None:
        """Rows that `prepare` gives when they are first asked for."""
        self._uid = uuid.uuid4().int
        self._prepare, self._mixed = prepare, mixed
        self._prepared: Prepared | None = None
        self._places: dict[int, int] = {}
        self.loaded, self.distributed = False, True

    def __reduce__(self) -> tuple[Any, ...]:
        return Deal, (self._uid, self.prepared, self._mixed, self._places)

    @property
    def prepared(self) -> Prepared:
        """The rows, made once."""
        if self._prepared is None:
            self._prepared = self._prepare()
        return self._prepared

    @property
    def has_label(self) -> bool:
        """Asked by xgboost-ray."""
        return True

    def assert_enough_shards_for_actors(self, num_actors: int) -> None:
        """Asked by xgboost-ray; that the rows are enough is looked at where they are prepared."""

    def assign_shards_to_actors(self, actors: Sequence[Any]) -> bool:
        """Deal the rows out to those that live; called when they have been asked to start."""
        living = [rank for rank, actor in enumerate(actors) if actor is not None]
        self._places = {rank: place for place, rank in enumerate(living)}
        self.prepared  # noqa: B018  in this process, while the actors start
        return True
