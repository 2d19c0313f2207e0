"""Who computes a step's result now: one run at a time, since its folder is one."""

from __future__ import annotations

import ray
from ray.experimental import internal_kv

_NAMESPACE = b"raysys"


class Lease:
    """The right to compute a result, kept in the cluster's key-value store.

    It ends with `end`, or with the driver that holds it.
    """

    def __init__(self, what: str, run: str) -> None:
        """Name what is computed, and by which run; `take` asks for it."""
        self._key, self._run = f"lease:{what}".encode(), run

    def take(self) -> str | None:
        """Take it; the run that holds it if that is another one, which is alive."""
        mine = f"{ray.get_runtime_context().get_job_id()} {self._run}"
        if not internal_kv._internal_kv_put(self._key, mine, False, namespace=_NAMESPACE):
            return None
        held = internal_kv._internal_kv_get(self._key, namespace=_NAMESPACE) or b""
        driver, _, run = held.decode().partition(" ")
        if run != self._run and driver in _drivers():
            return run
        internal_kv._internal_kv_put(self._key, mine, namespace=_NAMESPACE)
        return None

    def end(self) -> None:
        """Give it back."""
        internal_kv._internal_kv_del(self._key, namespace=_NAMESPACE)


def _drivers() -> set[str]:
    """Ids of the drivers that live, as Ray counts them; submission ids are others."""
    from ray._private.state import state

    return {str(job["JobID"]) for job in state.job_table() if not job["IsDead"]}
