"""Checks of `raysys doctor`: pure functions from facts to verdicts with remedies."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_GIB = 1 << 30
_DISK_WARN, _DISK_FAIL = 0.85, 0.95  # above the second, Ray schedules no task and stores no object
_CLOCK_WARN_S, _CLOCK_FAIL_S = 2.0, 60.0
_MIN_STORE_SHARE = 0.1  # of the memory
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """Result of a check: its subject, the observed state, and a remedy unless that is `ok`."""

    name: str
    verdict: Verdict
    fact: str
    remedy: str = ""


def check_versions(client: Mapping[str, str], cluster: Mapping[str, str]) -> Check:
    """Client and cluster need the same Ray and the same minor version of Python."""
    both = [(name, client.get(name, "?"), version) for name, version in cluster.items()]
    fact = "; ".join(f"{name} {a} on the client, {b} on the cluster" for name, a, b in both)
    differ = [name for name, a, b in both if _significant(name, a) != _significant(name, b)]
    if "ray" in differ or "python" in differ:
        remedy = (
            f"a client needs the cluster's Ray and Python 3.x: pip install "
            f"'ray=={cluster.get('ray', '?')}' under Python {cluster.get('python', '?')}, or the "
            "same image for both"
        )
        return Check("versions", "fail", fact, remedy)
    if differ:
        return Check("versions", "warn", fact, "a job imports raysys from the submitted "
                     "folder if it contains it; else install the same version on both")  # fmt: skip
    return Check("versions", "ok", fact)


def check_port(name: str, address: str, answers: bool, *, remedy: str) -> Check:
    """A port must accept connections from this machine."""
    if answers:
        return Check(name, "ok", f"{address} answers")
    return Check(name, "fail", f"{address} does not answer", remedy)


def check_object_store(store_bytes: float, shm_bytes: int, memory_bytes: int) -> Check:
    """The object store must fit into /dev/shm; on a disk it is ten times slower."""
    fact = (
        f"{store_bytes / _GIB:.1f} GiB of {memory_bytes / _GIB:.1f} GiB memory; "
        f"/dev/shm has {shm_bytes / _GIB:.1f} GiB"
    )
    if store_bytes > shm_bytes:
        return Check("object store", "fail", fact, "it is on a disk: enlarge /dev/shm with "
                     "docker run --shm-size, or an emptyDir of medium Memory")  # fmt: skip
    if store_bytes < _MIN_STORE_SHARE * memory_bytes:
        return Check("object store", "warn", fact, "Tables will spill to disk early: ray start "
                     "--object-store-memory, or more /dev/shm")  # fmt: skip
    return Check("object store", "ok", fact)


def check_disk(used: float) -> Check:
    """The disk with logs, packages and spilled objects must have free space."""
    fact = f"{used:.0%} of Ray's disk is used"
    if used < _DISK_WARN:
        return Check("disk", "ok", fact)
    remedy = "free space there, /tmp by default, or start Ray with RAY_TMPDIR on a larger disk"
    if used >= _DISK_FAIL:
        return Check("disk", "fail", f"{fact}: Ray stores no more objects", remedy)
    return Check("disk", "warn", fact, remedy)


def check_token(source: str, mode: int | None, error_status: int | None) -> Check:
    """The cluster must accept the token, and only its owner may read the token's file.

    `source` is the token's variable, or its file, which has the permissions `mode`.
    """
    if not source:
        return Check("token", "fail", "no token is set", "set RAY_AUTH_TOKEN, or "
                     "RAY_AUTH_TOKEN_PATH to a file with the token")  # fmt: skip
    if error_status is not None:
        return Check("token", "fail", f"{source}: the cluster answers {error_status}",
                     "use the cluster's: `ray get-auth-token` on its head")  # fmt: skip
    if mode is not None and mode & _OTHERS:
        fact = f"{source} has permissions {stat.S_IMODE(mode):o}: other users can read it"
        return Check("token", "warn", fact, f"chmod 600 {source}")
    return Check("token", "ok", source)


def check_authentication(mode: str) -> Check:
    """The cluster must require a token."""
    if mode == "token":
        return Check("authentication", "ok", "the cluster requires a token")
    return Check("authentication", "fail", f"the cluster's mode is {mode!r}: anyone who reaches "
                 "it can run code on it", "start its nodes with RAY_AUTH_MODE=token")  # fmt: skip


def check_clock(offset_s: float) -> Check:
    """Clocks of cluster and client must agree: schedules, key expiry and audit entries need it."""
    fact = f"the cluster is {abs(offset_s):.1f} s {'ahead' if offset_s > 0 else 'behind'}"
    if abs(offset_s) < _CLOCK_WARN_S:
        return Check("clock", "ok", fact)
    verdict: Verdict = "fail" if abs(offset_s) >= _CLOCK_FAIL_S else "warn"
    return Check("clock", verdict, fact, "synchronise both: chrony or systemd-timesyncd")


def check_gpus(driver: int | None, torch: int | None, ray: float) -> Check:
    """Driver, torch and Ray must see the same GPUs of a node."""
    counts = ("missing" if count is None else count for count in (driver, torch))
    fact = "nvidia-smi {}, torch {}, Ray {:g}".format(*counts, ray)
    if driver is None:  # torch is not asked
        fact = f"no NVIDIA driver, Ray {ray:g}"
    driver = driver or 0
    if ray and not driver:
        return Check("GPUs", "fail", fact, "Ray was configured with missing GPUs: start "
                     "the node without --num-gpus")  # fmt: skip
    if torch is not None and torch < driver:
        return Check("GPUs", "fail", fact, "torch cannot use them: install the build for the "
                     "driver's CUDA, and check CUDA_VISIBLE_DEVICES")  # fmt: skip
    if ray < driver:
        return Check("GPUs", "warn", fact, "Ray schedules fewer than exist: start the node "
                     f"with --num-gpus={driver}")  # fmt: skip
    return Check("GPUs", "ok", fact)


def check_storage(root: str, error: str) -> Check:
    """The storage root must be writable and readable."""
    if error:
        return Check("storage", "fail", f"{root}: {error}", "set RAYSYS_STORAGE to a folder or "
                     "URI that all nodes can write to")  # fmt: skip
    return Check("storage", "ok", f"{root} is writable and readable")


def check_mlflow(server: str, error: str) -> Check:
    """The MLflow tracking server must answer."""
    if error:
        return Check("MLflow", "fail", f"{server} does not answer: {error}", "start it, or set "
                     "MLFLOW_TRACKING_URI to a running one")  # fmt: skip
    return Check("MLflow", "ok", server or "not set: a database under the storage root")


def _significant(package: str, version: str) -> str:
    """The part of a version that must match: major and minor for Python, else all of it."""
    return version.rpartition(".")[0] if package == "python" else version
