"""Resumable runs: the same identity resumes, another one is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raysys.errors import DataError, RaysysError
from raysys.identity import RunIdentity
from raysys.storage import Storage


def test_a_run_is_resumed_only_by_the_same_identity(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    identity = RunIdentity({"depth": 3, "columns": ("a", "b"), "rate": 0.1})
    identity.claim(storage, "runs/one", "run 'one'")
    identity.claim(storage, "runs/one", "run 'one'")
    RunIdentity({"depth": 4}).claim(storage, "runs/two", "run 'two'")
    other = RunIdentity({"depth": 4, "columns": ["a", "b"], "rate": 0.1})
    with pytest.raises(DataError, match=r"run 'one' was started .* data: depth 3, now 4\. Give"):
        other.claim(storage, "runs/one", "run 'one'", error=DataError)
    other.write(storage, "runs/one")
    other.claim(storage, "runs/one", "run 'one'")


def test_facts_may_come_and_go_and_have_no_json(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    RunIdentity({"space": Path("a"), "old": 1}).claim(storage, "", "search")
    with pytest.raises(RaysysError, match=r"new null, now 2; old 1, now null.*; try that$"):
        RunIdentity({"space": Path("a"), "new": 2}).claim(storage, "", "search", remedy="try that")
    assert storage.exists("identity.json")


def test_of_two_runs_with_other_facts_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with ThreadPoolExecutor() as threads:
        for number in range(10):
            together = threading.Barrier(2)

            def claim(
                depth: int, run: str = f"runs/{number}", together: threading.Barrier = together
            ) -> bool:
                together.wait()
                try:
                    RunIdentity({"depth": depth}).claim(storage, run, "run")
                except RaysysError:
                    return False
                return True

            claims = [threads.submit(claim, depth) for depth in (3, 4)]
            assert sorted(claiming.result() for claiming in claims) == [False, True]
