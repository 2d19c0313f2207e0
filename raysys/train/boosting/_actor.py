"""Actors that turn their shard of the rows into bins and train trees together.

xgboost-ray's own actor keeps its rows twice, sketches them anew at every start, and asks another
process after each round whether to stop. `BoostActor` has the same methods, and does not import
xgboost-ray, which takes longer than XGBoost itself.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raysys.errors import UnavailableError
from raysys.imports import lazy_import
from raysys.train.boosting._boosting_rounds import BoostPlan, pack, progress_line, run_rounds

if TYPE_CHECKING:
    from raysys.storage import Storage
    from raysys.train.boosting._boosting_rounds import EvalHistory
    from raysys.train.boosting._feature_columns import FeatureEncoding
    from raysys.train.boosting._shard_assignment import ShardArrays, ShardAssignment

xgboost = lazy_import("xgboost")

_PROGRESS_EVERY_S = 3.0
_POLL_EVERY_S = 0.1


class BoostActor:
    """An actor with the methods that xgboost-ray's driver calls, and their arguments."""

    def __init__(
        self, rank: int, num_actors: int, queue: Any = None, checkpoint_frequency: int = 0,
        distributed_callbacks: Any = None,
    ) -> None:  # fmt: skip
        """Import XGBoost while the driver summarizes the rows."""
        _import_xgboost()
        os.environ["OMP_NUM_THREADS"] = "1"
        self._rank = rank
        self._queue: Any = queue
        self._stop_event: Any = None
        self._loaded: dict[int, tuple[tuple[int, int], ShardArrays]] = {}

    def set_queue(self, queue: Any) -> None:
        """Set the queue of messages to the driver."""
        self._queue = queue

    def set_stop_event(self, stop_event: Any) -> None:
        """Set the event that ends this training, because an actor is lost or is back."""
        self._stop_event = stop_event

    def pid(self) -> int:
        """Process id."""
        return os.getpid()

    def load_data(self, assignment: ShardAssignment) -> None:
        """Read this actor's shard, unless it is loaded already."""
        shard = assignment.shard(self._rank)
        if shard and self._loaded.get(assignment.key, (None,))[0] != shard:
            self._loaded[assignment.key] = (shard, assignment.load(*shard))

    def train(
        self, tracker: dict[str, Any], return_booster: bool, params: dict[str, Any],
        training: ShardAssignment, evals: Sequence[tuple[ShardAssignment, str]],
        _rounds_left: int, *, xgb_model: bytes | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Train together with the other actors.

        `tracker` has the arguments of XGBoost's communicator, `params` the `plan`, `name`,
        `storage` and `checkpoint` of `train_on_actors`, `xgb_model` a packed booster.
        """
        stopped = threading.Event()
        results: list[bytes | BaseException] = []
        assignments = [training, *(assignment for assignment, _ in evals)]

        def work() -> None:
            try:
                results.append(self._train(tracker, params, assignments, xgb_model, stopped))
            except BaseException as error:
                results.append(error)

        # In a thread, because another actor's death can leave it waiting.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_EVERY_S)
            if self._stop_event.is_set():
                stopped.set()
                raise UnavailableError("stopped: another actor is lost or is back")
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        return {"bst": result if return_booster else None, "evals_result": {}, "train_n": 0}

    def _train(
        self, tracker: dict[str, Any], params: dict[str, Any],
        assignments: Sequence[ShardAssignment], start: bytes | None, stopped: threading.Event,
    ) -> bytes:  # fmt: skip
        plan: BoostPlan = params["plan"]
        if plan.params["objective"].startswith("multi:"):
            classes = assignments[0].source.encoding.classes or ()
            plan = replace(plan, params={**plan.params, "num_class": len(classes)})
        # The tracker orders workers by name: the order of sums, and so rounding, is the same in
        # every run. (xgboost-ray names them after an address in memory.)
        name = f"actor-{self._rank:06d}"
        with xgboost.collective.CommunicatorContext(**tracker, dmlc_task_id=name):
            matrices: list[Any] = []
            for assignment in assignments:
                self.load_data(assignment)
                _, arrays = self._loaded.pop(assignment.key)
                first = matrices[0] if matrices else None
                encoding = assignment.source.encoding
                matrices.append(_quantile_matrix(arrays, encoding, plan.params, first))
            report = self._reporter(params, stopped, xgboost.collective.get_rank() == 0)
            validation = matrices[1] if len(matrices) > 1 else None
            return run_rounds(plan, matrices[0], validation, start=start, after_round=report)

    def _reporter(
        self, params: dict[str, Any], stopped: threading.Event, is_first: bool
    ) -> Callable[[Any, EvalHistory], bool]:
        plan: BoostPlan = params["plan"]
        storage: Storage | None = params["storage"]
        last_line = time.monotonic()

        def report(booster: Any, history: EvalHistory) -> bool:
            nonlocal last_line
            rounds = booster.num_boosted_rounds()
            is_due = rounds % plan.checkpoint_frequency == 0 and rounds < plan.num_boost_round
            if is_first and is_due:
                state = pack(booster, history)
                if storage:
                    storage.write_bytes(params["checkpoint"], state)
                self._send("checkpoint", state)
            if is_first and time.monotonic() - last_line >= _PROGRESS_EVERY_S:
                last_line = time.monotonic()
                line = progress_line(params["name"], history, rounds, plan.num_boost_round)
                self._send("line", line)
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


def _quantile_matrix(
    arrays: ShardArrays, encoding: FeatureEncoding, params: dict[str, Any], reference: Any
) -> Any:
    """A QuantileDMatrix, with the bins of the reference if there is one."""
    return xgboost.QuantileDMatrix(
        arrays.features, arrays.label, weight=arrays.weight, qid=arrays.qid,
        feature_names=encoding.booster_names, feature_types=encoding.feature_types,
        enable_categorical=True, max_bin=params["max_bin"], nthread=params["nthread"],
        ref=reference,
    )  # fmt: skip
