"""Runs xgboost-ray 0.1.19, the last release, on XGBoost 3.

XGBoost 2.1 moved the Rabit tracker into C++: ``RabitTracker`` takes its arguments in another order,
``worker_envs()`` became ``worker_args()``, and ``accept_workers()``, which xgboost-ray ran in a
forked process, is gone. Only the driver starts trackers, so only the driver is patched; the actors
are ours.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from raysys.console import say
from raysys.errors import UnavailableError

if TYPE_CHECKING:
    from raysys.storage import Storage
    from raysys.train.boosting._grow_trees import GrowPlan
    from raysys.train.boosting._matrix_shards import Shares

_started = threading.local()  # .group: the placement group of this thread's training
_LONGEST_SLEEP_S = 0.05
_LOOK_FOR_ACTORS_S = 1


def _start_rabit_tracker(num_workers: int) -> tuple[Any, dict[str, Any]]:
    """Replaces the function that fails on ``RabitTracker(host, num_workers)``."""
    import ray
    from xgboost.tracker import RabitTracker

    host_ip = ray.util.get_node_ip_address()
    tracker = RabitTracker(n_workers=num_workers, host_ip=host_ip, sortby="task")
    tracker.start()  # In a C++ thread of this process.
    return tracker, tracker.worker_args()


def _stop_rabit_tracker(tracker: Any) -> None:
    """Replaces the function that ends the tracker's process: it is a thread since XGBoost 2.1."""
    from xgboost.core import XGBoostError

    # After a success every worker has signed off and the wait ends at once. A dead actor's sign-off
    # never comes: then free() closes the tracker's socket, and reports that as an error.
    with contextlib.suppress(XGBoostError):
        tracker.wait_for(timeout=1)
    with contextlib.suppress(XGBoostError):
        tracker.free()


def _placement_group(*args: Any, **kwargs: Any) -> Any:
    """Stands in for ``ray.util.placement_group`` so that `train` can remove the group."""
    from ray.util import placement_group

    _started.group = placement_group(*args, **kwargs)
    return _started.group


def _handle_queue(queue: Any, checkpoint: Any, callback_returns: Any) -> None:
    """Replaces the function that takes messages: the actors' are bytes."""
    for _, message in queue.get_nowait_batch(queue.qsize()):
        kind, content = pickle.loads(message)
        if kind == "checkpoint":
            # The rounds to take off those that are left; the actors count the booster's.
            checkpoint.iteration = 0
            checkpoint.value = pickle.dumps(content)
        else:
            say(content)


def _sleep(seconds: float) -> None:
    """Replaces ``time.sleep``: ten seconds after each failure, a tenth when actors are awaited."""
    time.sleep(min(seconds, _LONGEST_SLEEP_S))


@functools.cache
def _patched() -> Any:
    """xgboost-ray's module, changed once a process."""
    import ray
    from xgboost_ray import main

    from raysys.train.boosting._actor import Actor

    main._start_rabit_tracker = _start_rabit_tracker
    main._stop_rabit_tracker = _stop_rabit_tracker
    main.placement_group = _placement_group
    main._RemoteRayXGBoostActor = ray.remote(Actor)
    main._handle_queue = _handle_queue
    main.time = SimpleNamespace(time=time.time, sleep=_sleep)
    main.ENV.ELASTIC_RESTART_RESOURCE_CHECK_S = _LOOK_FOR_ACTORS_S
    main.ENV.ELASTIC_RESTART_GRACE_PERIOD_S = _LOOK_FOR_ACTORS_S
    return main


def train(
    plan: GrowPlan,
    training: Shares,
    validation: Shares | None,
    *,
    name: str,
    actors: int,
    min_actors: int,
    max_failures: int,
    start: bytes | None = None,
    storage: Storage | None = None,
    checkpoint: str = "",
) -> bytes:
    """Grow trees on actors, through ``xgboost_ray.train``.

    Args:
        plan: XGBoost's parameters and the rounds.
        training: Rows to learn from.
        validation: Rows to measure on after each round.
        name: The run's name in its lines.
        actors: How many, of as many CPUs as the plan has threads.
        min_actors: How many go on when others are lost, while these are replaced.
        max_failures: How often actors may be lost.
        start: A packed booster to go on with.
        storage: Where the packed booster is written after every `plan.checkpoint_rounds`.
        checkpoint: Under this path.

    Returns:
        The booster, packed.

    Raises:
        UnavailableError: Actors were lost too often.
    """
    from ray.util import remove_placement_group

    main = _patched()
    _started.group = None
    try:
        return main.train(
            {
                "plan": plan, "name": name, "storage": storage, "checkpoint": checkpoint,
                "tree_method": "hist", "nthread": plan.params["nthread"],
            },
            training,
            plan.rounds,
            evals=[(validation, "validation")] if validation else [],
            ray_params=main.RayParams(
                num_actors=actors,
                cpus_per_actor=plan.params["nthread"],
                gpus_per_actor=0,
                elastic_training=min_actors < actors,
                max_failed_actors=actors - min_actors,
                max_actor_restarts=max_failures,
                checkpoint_frequency=plan.checkpoint_rounds,
                verbose=False,
            ),
            xgb_model=start,
        )  # fmt: skip
    except RuntimeError as error:
        reason = error.__cause__ and error.__cause__.__cause__
        raise UnavailableError(f"boosting {name}: {error} The last reason: {reason}") from error
    finally:
        # xgboost-ray removes the group only after a success; left over, it would keep its CPUs.
        if _started.group is not None:
            remove_placement_group(_started.group)
