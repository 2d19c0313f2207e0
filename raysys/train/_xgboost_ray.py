"""Runs xgboost-ray 0.1.19, the last release, on XGBoost 3.

XGBoost 2.1 moved the Rabit tracker into C++: ``RabitTracker`` takes its arguments in another order,
``worker_envs()`` became ``worker_args()``, and ``accept_workers()``, which xgboost-ray ran in a
forked process, is gone. Only the driver starts trackers, so only the driver is patched; the actors
get their one change through xgboost-ray's own hook, a distributed callback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xgboost

_started = threading.local()  # .group: the placement group of this thread's training


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


def _actor_setup() -> Any:
    """Makes the callback that replaces ``xgboost_ray.main._RabitContext`` in each actor.

    That one names a worker after an address in its memory. The tracker orders workers by name, so
    the order of sums, and thus rounding, would differ from run to run. The classes are local so
    that they are pickled by value: a worker need not be able to import this package.
    """
    from xgboost_ray.callback import DistributedCallback

    class ActorSetup(DistributedCallback):
        def on_init(self, actor: Any, *args: Any, **kwargs: Any) -> None:
            import xgboost
            from xgboost_ray import main

            class RankedContext(xgboost.collective.CommunicatorContext):
                def __init__(self, _actor_id: str, worker_args: dict[str, Any]) -> None:
                    super().__init__(**worker_args, dmlc_task_id=f"actor-{actor.rank:06d}")

            main._RabitContext = RankedContext

    return ActorSetup()


def train(
    params: dict[str, Any],
    dtrain: Any,
    *,
    num_boost_round: int,
    ray_params: Any,
    evals: Sequence[tuple[Any, str]] = (),
    evals_result: dict[str, Any] | None = None,
    **kw: Any,
) -> xgboost.Booster:
    """Calls ``xgboost_ray.train`` with what changed in XGBoost 2.1 patched.

    Args:
        params: XGBoost's parameters.
        dtrain: What to train on, a RayDMatrix such as `Table.to_dmatrix` gives.
        num_boost_round: Number of boosting rounds.
        ray_params: RayParams or a dict of its fields; ``cpus_per_actor`` must be a whole number.
        evals: What to evaluate on, with names.
        evals_result: Filled with the metrics of each round, after an actor's restart only with
            those of the rounds since the checkpoint.
        **kw: More arguments of ``xgboost_ray.train`` and ``xgboost.train``.

    Returns:
        The trained Booster.
    """
    from ray.util import remove_placement_group
    from xgboost_ray import main

    main._start_rabit_tracker = _start_rabit_tracker
    main._stop_rabit_tracker = _stop_rabit_tracker
    main.placement_group = _placement_group
    ray_params = main._validate_ray_params(ray_params)
    callbacks = [*(ray_params.distributed_callbacks or ()), _actor_setup()]
    ray_params = dataclasses.replace(ray_params, distributed_callbacks=callbacks)
    _started.group = None
    try:
        return main.train(
            params,
            dtrain,
            num_boost_round,
            evals=evals,
            evals_result=evals_result,
            ray_params=ray_params,
            **kw,
        )
    except BaseException:
        # xgboost-ray removes the group only after a success; left over, it would keep its CPUs.
        if _started.group is not None:
            remove_placement_group(_started.group)
        raise
