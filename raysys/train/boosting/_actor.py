"""What runs in the actors: shares of a Table's rows become bins, and trees of all of them.

xgboost-ray's own actor makes pandas frames of its rows, keeps them in the object store a second
time and builds a DMatrix, which every start of a training sketches anew (its RayQuantileDMatrix is
one in name only). It also asks another process after each round whether to stop. This one has the
same methods, and does not import xgboost-ray, which takes longer than XGBoost itself.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray

from raysys.errors import UnavailableError
from raysys.train.boosting._columns import numbers_of, runs_of
from raysys.train.boosting._grow_trees import GrowPlan, grow, packed, progress_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xgboost

    from raysys.storage import Storage
    from raysys.train.boosting._grow_trees import History
    from raysys.train.boosting._prepare import Prepared

_SAY_EVERY_S = 3.0
_LOOK_EVERY_S = 0.1


class Arrays(NamedTuple):
    """An actor's share of the rows."""

    features: np.ndarray
    label: np.ndarray
    weight: np.ndarray | None
    group: np.ndarray | None


@dataclass(frozen=True)
class Deal:
    """Rows dealt out to the living actors.

    Those of ranking go by whole blocks. Others go in equal shares: to train on, rows that follow
    each other, so that a node fetches its own blocks alone; to measure on (`mixed`), every n-th
    row, because XGBoost's AUC of several processes is the mean of theirs.

    Attributes:
        key: Tells one Table from another.
        prepared: The blocks.
        mixed: Whether each actor gets every n-th row.
        places: The place of each living actor, by its rank.
    """

    key: int
    prepared: Prepared
    mixed: bool
    places: dict[int, int]

    def share(self, rank: int) -> tuple[int, int] | None:
        """An actor's place and the number of places; None while it is not among them."""
        return (self.places[rank], len(self.places)) if rank in self.places else None

    def load(self, place: int, places: int) -> Arrays:
        """Read a share, in an actor."""
        blocks, rows, columns, coding, class_weights = self.prepared
        pieces = self._pieces(place, places)
        total = sum(len(range(*which.indices(rows[at]))) for at, which in pieces)
        features = np.empty((total, len(coding.features)), np.float32)
        label = np.empty(total, np.float32)
        weight = np.ones(total, np.float32) if columns.weight else None
        sizes = [np.empty(0, np.int64)]
        done = 0
        for at, which in pieces:
            block = ray.get(blocks[at])
            if which.step is None:
                block = block.slice(which.start, which.stop - which.start)
            else:
                block = block.take(np.arange(*which.indices(len(block))))
            into = slice(done, done + len(block))
            coding.matrix(block, out=features[into])
            label[into] = coding.labels(block[columns.label])
            if weight is not None:
                weight[into] = numbers_of(block[columns.weight])
            if columns.group:
                sizes.append(np.diff(runs_of(block[columns.group]), append=len(block)))
            done = into.stop
        if class_weights is not None:
            each = np.asarray(class_weights, np.float32)[label.astype(np.int64)]
            weight = each if weight is None else weight * each
        each_size = np.concatenate(sizes)
        group = np.repeat(np.arange(len(each_size)), each_size) if columns.group else None
        return Arrays(features, label, weight, group)

    def _pieces(self, place: int, places: int) -> list[tuple[int, slice]]:
        """Blocks by number, and which rows of them."""
        rows = self.prepared.rows
        if self.prepared.columns.group:
            return [(at, slice(0, rows[at])) for at in range(place, len(rows), places)]
        if self.mixed:
            return [(at, slice(place, None, places)) for at in range(len(rows))]
        total, first, found = sum(rows), 0, []
        start, stop = total * place // places, total * (place + 1) // places
        for at, count in enumerate(rows):
            low, high = max(start, first) - first, min(stop, first + count) - first
            if low < high:
                found.append((at, slice(low, high)))
            first += count
        return found


class Actor:
    """Has the methods that xgboost-ray's driver calls, with its arguments."""

    def __init__(
        self,
        rank: int,
        num_actors: int,
        queue: Any = None,
        checkpoint_frequency: int = 0,
        distributed_callbacks: Any = None,
    ) -> None:
        """One of `num_actors`; the rest is not used."""
        _import_xgboost()  # while the driver looks at the rows
        os.environ["OMP_NUM_THREADS"] = "1"
        self._rank = rank
        self._queue: Any = queue
        self._stop_event: Any = None
        self._loaded: dict[int, tuple[tuple[int, int], Arrays]] = {}

    def set_queue(self, queue: Any) -> None:
        """Where messages to the driver go."""
        self._queue = queue

    def set_stop_event(self, stop_event: Any) -> None:
        """What says that this training ends here, because another actor is lost or is back."""
        self._stop_event = stop_event

    def pid(self) -> int:
        """Answers while the process lives."""
        return os.getpid()

    def load_data(self, data: Deal) -> None:
        """Read this actor's share, if it is not here."""
        share = data.share(self._rank)
        if share and self._loaded.get(data.key, (None,))[0] != share:
            self._loaded[data.key] = (share, data.load(*share))

    def train(
        self,
        tracker: dict[str, Any],
        return_booster: bool,
        params: dict[str, Any],
        training: Deal,
        evals: Sequence[tuple[Deal, str]],
        _rounds_left: int,
        *,
        xgb_model: bytes | None = None,
    ) -> dict[str, Any]:
        """Grow trees with the other actors.

        Args:
            tracker: Where the tracker is.
            return_booster: Whether to give the booster.
            params: `plan`, `name`, `storage` and `checkpoint` of `_xgboost_ray.train`.
            training: What to train on.
            evals: What to measure on, with names.
            xgb_model: What to go on with, packed.
        """
        stopped = threading.Event()
        ended: list[bytes | BaseException] = []
        deals = [training, *(deal for deal, _ in evals)]

        def work() -> None:
            try:
                ended.append(self._grow(tracker, params, deals, xgb_model, stopped))
            except BaseException as error:
                ended.append(error)

        # In a thread, because another actor's death can leave it waiting.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_EVERY_S)
            if self._stop_event.is_set():
                stopped.set()
                raise UnavailableError("stopped, since another actor is lost or is back")
        (found,) = ended
        if isinstance(found, BaseException):
            raise found
        return {"bst": found if return_booster else None, "evals_result": {}, "train_n": 0}

    def _grow(
        self,
        tracker: dict[str, Any],
        params: dict[str, Any],
        deals: Sequence[Deal],
        start: bytes | None,
        stopped: threading.Event,
    ) -> bytes:
        import xgboost

        plan: GrowPlan = params["plan"]
        if plan.params["objective"].startswith("multi:"):
            classes = deals[0].prepared.coding.classes or ()
            plan = replace(plan, params={**plan.params, "num_class": len(classes)})
        # The tracker orders workers by name: the order of sums, and so rounding, is the same in
        # every run. (xgboost-ray names them after an address in memory.)
        name = f"actor-{self._rank:06d}"
        with xgboost.collective.CommunicatorContext(**tracker, dmlc_task_id=name):
            matrices: list[xgboost.QuantileDMatrix] = []
            for deal in deals:
                self.load_data(deal)
                _, arrays = self._loaded.pop(deal.key)
                matrices.append(_matrix(arrays, deal, plan, matrices))
            report = self._reporter(params, stopped, xgboost.collective.get_rank() == 0)
            validation = matrices[1] if len(matrices) > 1 else None
            return grow(plan, matrices[0], validation, start=start, after_round=report)

    def _reporter(
        self, params: dict[str, Any], stopped: threading.Event, first: bool
    ) -> Callable[[xgboost.Booster, History], bool]:
        plan: GrowPlan = params["plan"]
        storage: Storage | None = params["storage"]
        said_at = time.monotonic()

        def report(booster: xgboost.Booster, history: History) -> bool:
            nonlocal said_at
            done = booster.num_boosted_rounds()
            if first and done % plan.checkpoint_rounds == 0 and done < plan.rounds:
                state = packed(booster, history)
                if storage:
                    storage.write_bytes(params["checkpoint"], state)
                self._send("checkpoint", state)
            if first and time.monotonic() - said_at >= _SAY_EVERY_S:
                said_at = time.monotonic()
                self._send("line", progress_line(params["name"], history, done, plan.rounds))
            return stopped.is_set()

        return report

    def _send(self, kind: str, content: Any) -> None:
        # As bytes: the queue's process would import the modules of what it holds.
        self._queue.put((self._rank, pickle.dumps((kind, content))))


def _import_xgboost() -> None:
    """Import XGBoost without scikit-learn, for a quarter of the time: only its wrappers need it."""
    absent = "sklearn" not in sys.modules
    if absent:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import xgboost  # noqa: F401
    finally:
        if absent:
            del sys.modules["sklearn"]


def _matrix(
    arrays: Arrays, deal: Deal, plan: GrowPlan, before: Sequence[xgboost.QuantileDMatrix]
) -> xgboost.QuantileDMatrix:
    import xgboost

    return xgboost.QuantileDMatrix(
        arrays.features,
        arrays.label,
        weight=arrays.weight,
        qid=arrays.group,
        feature_names=list(deal.prepared.coding.features),
        feature_types=deal.prepared.coding.kinds,
        enable_categorical=True,
        max_bin=plan.params["max_bin"],
        nthread=plan.params["nthread"],
        ref=before[0] if before else None,
    )
