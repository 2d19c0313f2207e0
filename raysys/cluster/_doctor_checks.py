"""The checks of `raysys doctor`: pure functions of facts, each with its remedy."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_GIB = 1 << 30
_DISK_WARN, _DISK_FAIL = 0.85, 0.95  # beyond the latter Ray places no task and no object
_CLOCK_WARN_S, _CLOCK_FAIL_S = 2.0, 60.0
_LEAST_STORE = 0.1  # of the memory
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Check:
    """What came of a check.

    Attributes:
        name: What was looked at.
        verdict: `ok`, `warn` or `fail`.
        fact: What was found.
        remedy: What to do; empty if all is well.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    fact: str
    remedy: str = ""


def check_versions(here: Mapping[str, str], there: Mapping[str, str]) -> Check:
    """A client and a cluster must agree on Ray and on Python's minor version."""
    fact = "; ".join(
        f"{name} {here.get(name, '?')} here, {version} there" for name, version in there.items()
    )
    differ = [
        name
        for name, version in there.items()
        if _significant(name, here.get(name, "?")) != _significant(name, version)
    ]
    if "ray" in differ or "python" in differ:
        remedy = (
            f"a client that connects needs the cluster's Ray and Python 3.x: "
            f"pip install 'ray=={there.get('ray', '?')}' under Python {there.get('python', '?')}, "
            "or the same image for both"
        )
        return Check("versions", "fail", fact, remedy)
    if differ:
        return Check("versions", "warn", fact, "a job takes raysys from the folder that is "
                     "submitted if it lies there; else install the same on both")  # fmt: skip
    return Check("versions", "ok", fact)


def check_port(name: str, address: str, answers: bool, *, remedy: str) -> Check:
    """A port that must be reached from here."""
    if answers:
        return Check(name, "ok", f"{address} answers")
    return Check(name, "fail", f"{address} does not answer", remedy)


def check_object_store(store_bytes: float, shm_bytes: int, memory_bytes: int) -> Check:
    """The object store lies in /dev/shm, else on a disk, which is ten times slower."""
    fact = (
        f"{store_bytes / _GIB:.1f} GiB of {memory_bytes / _GIB:.1f} GiB memory; "
        f"/dev/shm has {shm_bytes / _GIB:.1f} GiB"
    )
    if store_bytes > shm_bytes:
        return Check("object store", "fail", fact, "it lies on a disk: give the container more, "
                     "docker run --shm-size, or an emptyDir of medium Memory")  # fmt: skip
    if store_bytes < _LEAST_STORE * memory_bytes:
        return Check("object store", "warn", fact, "Tables will spill to disk early: ray start "
                     "--object-store-memory, or more /dev/shm")  # fmt: skip
    return Check("object store", "ok", fact)


def check_disk(used: float) -> Check:
    """The disk that holds logs, packages and what the object store spills."""
    fact = f"{used:.0%} of Ray's disk is used"
    remedy = "free space under /tmp/ray, or start Ray with --temp-dir on a larger disk"
    if used >= _DISK_FAIL:
        return Check("disk", "fail", f"{fact}: Ray takes no more objects", remedy)
    return Check("disk", "warn", fact, remedy) if used >= _DISK_WARN else Check("disk", "ok", fact)


def check_token(source: str, mode: int | None, refused: int | None) -> Check:
    """The cluster's token.

    Args:
        source: Where it comes from; empty if there is none.
        mode: The permissions of its file, if it is one.
        refused: The status with which the cluster turned it away, if it did.
    """
    if not source:
        return Check("token", "fail", "there is none here", "set RAY_AUTH_TOKEN, or "
                     "RAY_AUTH_TOKEN_PATH to a file that holds it")  # fmt: skip
    if refused is not None:
        return Check("token", "fail", f"{source}: the cluster answers {refused}",
                     "take the cluster's: `ray get-auth-token` on its head")  # fmt: skip
    if mode is not None and mode & _OTHERS:
        fact = f"{source} has permissions {stat.S_IMODE(mode):o}: others here can read it"
        return Check("token", "warn", fact, f"chmod 600 {source}")
    return Check("token", "ok", source)


def check_authentication(mode: str) -> Check:
    """Whether the cluster asks for a token at all."""
    if mode == "token":
        return Check("authentication", "ok", "the cluster wants a token")
    return Check("authentication", "fail", f"the cluster's mode is {mode!r}: whoever reaches it "
                 "runs code on it", "start its nodes with RAY_AUTH_MODE=token")  # fmt: skip


def check_clock(offset_s: float) -> Check:
    """A cluster's clock against ours; schedules, keys' expiry and audit lines go by it."""
    fact = f"the cluster is {abs(offset_s):.1f} s {'ahead' if offset_s > 0 else 'behind'}"
    remedy = "keep both in time: chrony or systemd-timesyncd"
    if abs(offset_s) >= _CLOCK_FAIL_S:
        return Check("clock", "fail", fact, remedy)
    if abs(offset_s) >= _CLOCK_WARN_S:
        return Check("clock", "warn", fact, remedy)
    return Check("clock", "ok", fact)


def check_gpus(driver: int | None, torch: int | None, ray: float) -> Check:
    """GPUs as the driver, torch and Ray see them, on one node."""
    fact = f"nvidia-smi {_seen(driver)}, torch {_seen(torch)}, Ray {ray:g}"
    if not driver:
        if ray:
            return Check("GPUs", "fail", fact, "Ray was told of GPUs that are not there: start "
                         "the node without --num-gpus")  # fmt: skip
        return Check("GPUs", "ok", fact)
    if torch is not None and torch < driver:
        return Check("GPUs", "fail", fact, "torch cannot use them: install the build for the "
                     "driver's CUDA, and look at CUDA_VISIBLE_DEVICES")  # fmt: skip
    if ray < driver:
        return Check("GPUs", "warn", fact, "Ray gives out fewer than there are: start the node "
                     f"with --num-gpus={driver}")  # fmt: skip
    return Check("GPUs", "ok", fact)


def check_storage(root: str, error: str) -> Check:
    """The storage root must take what jobs leave."""
    if error:
        return Check("storage", "fail", f"{root}: {error}", "set RAYSYS_STORAGE to a folder or "
                     "URI that all nodes may write to")  # fmt: skip
    return Check("storage", "ok", f"{root} is written and read")


def check_mlflow(server: str, error: str) -> Check:
    """Where runs are recorded."""
    if error:
        return Check("MLflow", "fail", f"{server} does not answer: {error}", "start it, or set "
                     "MLFLOW_TRACKING_URI to one that runs")  # fmt: skip
    return Check("MLflow", "ok", server or "none is set: a database under the storage root")


def _significant(package: str, version: str) -> str:
    """What must be equal: all of Ray's version, Python's without the last number."""
    return version.rpartition(".")[0] if package == "python" else version


def _seen(count: int | None) -> str:
    return "not there" if count is None else str(count)
