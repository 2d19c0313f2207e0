"""Resumable runs: the same identity resumes, another one is refused."""

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
