"""Verdicts and remedies of the checks of `raysys doctor`."""

from pathlib import Path

import pytest

from raysys.cluster import _doctor_checks as checks
from raysys.cluster import _machine_facts
from raysys.cluster._doctor_checks import Check

_GIB = 1 << 30
CLIENT = {"python": "3.11.7", "ray": "2.60.0", "raysys": "0.1.0"}


def versions(**cluster: str) -> Check:
    return checks.check_versions(CLIENT, CLIENT | cluster)


def clock(offset_s: float) -> Check:
    return checks.check_clock(offset_s)


def store(store_gib: float, shm_gib: int, memory_gib: int) -> Check:
    return checks.check_object_store(store_gib * _GIB, shm_gib * _GIB, memory_gib * _GIB)


@pytest.mark.parametrize(
    ("check", "verdict", "fact"),
    [
        (versions(), "ok", "ray 2.60.0 on the client, 2.60.0 on the cluster"),
        (versions(python="3.11.9"), "ok", "python 3.11.7 on the client, 3.11.9 on the cluster"),
        (versions(raysys="0.2.0"), "warn", "raysys 0.1.0 on the client, 0.2.0 on the cluster"),
        (versions(python="3.12.7"), "fail", "3.12.7 on the cluster"),
        (versions(ray="2.59.0"), "fail", "2.59.0 on the cluster"),
        (checks.check_port("GCS", "h:1", True, remedy="r"), "ok", "h:1 answers"),
        (checks.check_port("GCS", "h:1", False, remedy="r"), "fail", "h:1 does not answer"),
        (store(6, 12, 24), "ok", "6.0 GiB of 24.0 GiB"),
        (store(2, 12, 24), "warn", "2.0 GiB of 24.0 GiB"),
        (store(6, 1, 24), "fail", "/dev/shm has 1.0 GiB"),
        (checks.check_disk(0.5), "ok", "50%"),
        (checks.check_disk(0.9), "warn", "90%"),
        (checks.check_disk(0.96), "fail", "stores no more objects"),
        (checks.check_token("RAY_AUTH_TOKEN", None, None), "ok", "RAY_AUTH_TOKEN"),
        (checks.check_token("/t", 0o100600, None), "ok", "/t"),
        (checks.check_token("/t", 0o100640, None), "warn", "/t has permissions 640"),
        (checks.check_token("/t", 0o100604, None), "warn", "/t has permissions 604"),
        (checks.check_token("/t", 0o100600, 403), "fail", "/t: the cluster answers 403"),
        (checks.check_token("", None, 401), "fail", "no token is set"),
        (checks.check_authentication("token"), "ok", "requires a token"),
        (checks.check_authentication("disabled"), "fail", "run code on it"),
        (clock(0.4), "ok", "0.4 s ahead"),
        (clock(-5), "warn", "5.0 s behind"),
        (clock(-300), "fail", "300.0 s behind"),
        (checks.check_gpus(None, None, 0), "ok", "no NVIDIA driver, Ray 0"),
        (checks.check_gpus(2, 2, 2), "ok", "nvidia-smi 2, torch 2, Ray 2"),
        (checks.check_gpus(2, None, 2), "ok", "torch missing"),
        (checks.check_gpus(2, 2, 0), "warn", "Ray 0"),
        (checks.check_gpus(2, 0, 2), "fail", "torch 0"),
        (checks.check_gpus(None, None, 1), "fail", "Ray 1"),
        (checks.check_storage("s3://x", ""), "ok", "s3://x is writable and readable"),
        (checks.check_storage("s3://x", "denied"), "fail", "s3://x: denied"),
        (checks.check_mlflow("", ""), "ok", "a database under the storage root"),
        (checks.check_mlflow("http://m", ""), "ok", "http://m"),
        (checks.check_mlflow("http://m", "refused"), "fail", "http://m does not answer: refused"),
    ],
)  # fmt: skip
def test_a_check_reports_the_fact_and_a_remedy_if_not_ok(
    check: Check, verdict: str, fact: str
) -> None:
    assert check.verdict == verdict
    assert fact in check.fact
    assert bool(check.remedy) == (verdict != "ok")


def test_facts_of_this_machine_are_collected_without_leftover_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    facts = _machine_facts.collect()
    assert (facts.storage, facts.storage_error) == (str(tmp_path), "")
    assert "hunter2" not in facts.mlflow + facts.mlflow_error
    assert "refused" in facts.mlflow_error
    assert facts.versions["ray"]
    assert 0 < facts.disk_used < 1
    assert facts.memory_bytes > _GIB
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_storage_root_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", "/proc/nothing")
    facts = _machine_facts.collect()
    assert facts.storage == "/proc/nothing"
    assert "No such file or directory" in facts.storage_error
