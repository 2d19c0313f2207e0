"""Lease on a step's result: one run at a time computes it, since they share its folder."""

import ray

from raysys.ray_internals import key_value, process


class Lease:
    """The right to compute a result; ends with `release` or with the driver that owns it.

    Ray's key-value store has put-if-absent, not compare-and-swap. So a lease is a chain of keys,
    one per generation, of which the last one counts: a successor creates the next generation,
    which only one can, and the last is never deleted. An owner ends its lease by writing over its
    own key.
    """

    def __init__(self, result: str, run: str) -> None:
        """Name the result and the run that would compute it; `take` asks for the lease."""
        self._prefix, self._run = f"lease:{result}:".encode(), run
        self._owned: bytes | None = None

    def __repr__(self) -> str:
        state = "free" if self._owned is None else "owned"
        return f"Lease({self._prefix!r}, {self._run!r}, {state})"

    def take(self) -> str | None:
        """Take the lease; return None, or the living run that owns it."""
        claim = f"{_driver()} {self._run}".encode()
        while True:
            generations = sorted(key_value.keys(self._prefix))
            last = generations[-1] if generations else None
            owner = key_value.get(last) if last else None
            if owner == claim:
                self._owned = last
                return None
            driver, _, run = (owner or b"").decode().partition(" ")
            if run and run != self._run and driver in process.live_jobs():
                return run
            following = int(last.removeprefix(self._prefix)) + 1 if last else 0
            key = self._prefix + f"{following:08d}".encode()
            if not key_value.put(key, claim, overwrite=False):
                continue
            # A slow taker may create a generation again that was deleted: then a later one exists.
            if max(key_value.keys(self._prefix)) != key:
                key_value.delete(key)
                continue
            for earlier in generations:
                key_value.delete(earlier)
            self._owned = key
            return None

    def release(self) -> None:
        """End the lease, if this object owns it."""
        if self._owned is not None:
            key_value.put(self._owned, b"")
            self._owned = None


def _driver() -> str:
    return str(ray.get_runtime_context().get_job_id())
