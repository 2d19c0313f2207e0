"""Changes to xgboost-ray's internals, all of them: of 0.1.19, with XGBoost 3.x and Ray 2.60.

They are made in a private copy of its driver, so that other uses of xgboost-ray in this process
stay as they were imported. XGBoost 2.1 moved the Rabit tracker into C++, with other arguments and
without the `accept_workers()` that xgboost-ray runs in a forked process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import ray
from ray.util import placement_group

from raysys.console import say
from raysys.imports import lazy_import
from raysys.train.boosting._actor import BoostActor

xgboost = lazy_import("xgboost")

# Modules of the driver, the first imported by the second, with the names of their copies.
_COPIES = {
    "xgboost_ray.main": "raysys_xgboost_ray_main",
    "xgboost_ray.elastic": "raysys_xgboost_ray_elastic",
}
_MAX_SLEEP_S = 0.05
_RESTART_CHECK_S = 1


_current = threading.local()  # `group`: the placement group of this thread's training


@functools.cache
def driver() -> Any:
    """A copy of `xgboost_ray.main` that starts our actors; made once a process."""
    for name, copy in _COPIES.items():
        spec: Any = importlib.util.find_spec(name)
        source = spec.loader.get_source(name)
        for original, renamed in _COPIES.items():
            source = source.replace(f"from {original} import", f"from {renamed} import")
        module = sys.modules[copy] = ModuleType(copy)
        exec(compile(source, spec.origin, "exec"), module.__dict__)
        if name == "xgboost_ray.main":
            replacements: dict[str, Any] = {
                "_start_rabit_tracker": _start_rabit_tracker,
                "_stop_rabit_tracker": _stop_rabit_tracker,
                "_handle_queue": _handle_queue,
                "_RemoteRayXGBoostActor": ray.remote(BoostActor),
                "placement_group": _placement_group,
                "time": SimpleNamespace(time=time.time, sleep=_sleep),
            }
            for attribute, value in replacements.items():
                getattr(module, attribute)  # the copy must have it
                setattr(module, attribute, value)
            module.ENV.ELASTIC_RESTART_RESOURCE_CHECK_S = _RESTART_CHECK_S
            module.ENV.ELASTIC_RESTART_GRACE_PERIOD_S = _RESTART_CHECK_S
    return sys.modules[_COPIES["xgboost_ray.main"]]


@contextlib.contextmanager
def removed_placement_group() -> Iterator[None]:
    """A block after which the placement group of its training is removed.

    xgboost-ray removes it only after a success; left over, it would keep its CPUs.
    """
    _current.group = None
    try:
        yield
    finally:
        if _current.group is not None:
            ray.util.remove_placement_group(_current.group)


def _start_rabit_tracker(num_workers: int) -> tuple[Any, dict[str, Any]]:
    """Replaces the function that fails on `RabitTracker(host, num_workers)`."""
    host_ip = ray.util.get_node_ip_address()
    tracker = xgboost.RabitTracker(n_workers=num_workers, host_ip=host_ip, sortby="task")
    tracker.start()  # in a C++ thread of this process
    return tracker, tracker.worker_args()


def _stop_rabit_tracker(tracker: Any) -> None:
    """Replaces the function that ends the tracker's process: it is a thread since XGBoost 2.1."""
    # After a success every worker has signed off and the wait ends at once. A dead actor's sign-off
    # never comes: then free() closes the tracker's socket, and reports that as an error.
    for end in (functools.partial(tracker.wait_for, timeout=1), tracker.free):
        with contextlib.suppress(xgboost.core.XGBoostError):
            end()


def _placement_group(*args: Any, **kwargs: Any) -> Any:
    """Replaces `ray.util.placement_group`: the group is noted, to be removed."""
    _current.group = placement_group(*args, **kwargs)
    return _current.group


def _handle_queue(queue: Any, checkpoint: Any, callback_returns: Any) -> None:
    """Replaces the function that takes messages: those of our actors are bytes."""
    for _, message in queue.get_nowait_batch(queue.qsize()):
        kind, content = pickle.loads(message)
        if kind == "checkpoint":
            # The rounds to subtract from those that remain; the actors count the booster's.
            checkpoint.iteration = 0
            checkpoint.value = pickle.dumps(content)
        else:
            say(content)


def _sleep(seconds: float) -> None:
    """Replaces `time.sleep`: ten seconds after each failure, a tenth while actors start."""
    time.sleep(min(seconds, _MAX_SLEEP_S))
