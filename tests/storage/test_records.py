"""Damaged JSON under a storage root: one sentence with the file, and lists without it."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raysys import audit, cli
from raysys.errors import StorageError
from raysys.gateway import create_key, read_keys
from raysys.identity import RunIdentity
from raysys.storage import Storage, read_record, read_records
from raysys.train._run_state import RunState
from raysys.tune import Choice
from raysys.tune._trial_ledger import read_trials
from raysys.workflow import runs

DAMAGES = {
    "empty": b"",
    "cut off": b'{"name": "a", "r',
    "binary": b"\xff\x00\x80",
    "a list": b"[1]",
}


@dataclasses.dataclass
class Film:
    title: str


def film(fields: Any) -> Film:
    return Film(**fields)


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_names_its_file_and_a_list_goes_on_without_it(
    content: bytes, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write_json("films/1.json", {"title": "Heat"})
    storage.write_bytes("films/2.json", content)
    assert read_record(storage, "films/1.json", film) == Film("Heat")
    assert read_record(storage, "films/0.json", film) is None
    said = rf"^{storage.uri('films/2.json')} is damaged, {len(content)} bytes \(.*\): buy it again$"
    with pytest.raises(StorageError, match=said):
        read_record(storage, "films/2.json", film, remedy="buy it again")
    paths = [f"films/{number}.json" for number in range(3)]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert read_records(storage, paths, film) == [Film("Heat")]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"left out: {storage.uri('films/2.json')} is damaged")


def command(*words: str) -> Callable[[Storage], Any]:
    def call(storage: Storage) -> None:
        done = CliRunner().invoke(cli.app, words, env={"RAYSYS_STORAGE": storage.root})
        if done.exception:
            raise done.exception

    return call


@pytest.mark.parametrize("content", list(DAMAGES.values())[:3], ids=list(DAMAGES)[:3])
@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("runs/a/run.json", lambda storage: runs.steps("a", storage)),
        ("runs/a/run.json", command("steps", "a")),
        ("runs/a/run.json", command("lineage", "a")),
        ("identity.json", lambda storage: RunIdentity({"n": 1}).claim(storage, "", "search 's'")),
        ("training/a/result.json", lambda storage: RunState(storage, "a").read("result")),
        ("trials/1.json", lambda storage: read_trials(storage, {"n": Choice([1])})),
        ("tracking.json", command("runs")),
    ],
)
def test_what_needs_a_damaged_record_says_which(
    path: str, read: Callable[[Storage], Any], content: bytes, storage: Storage
) -> None:
    storage.write_bytes(path, content)
    with pytest.raises(StorageError, match=f"{storage.uri(path)} is damaged.*remove") as caught:
        read(storage)
    assert "\n" not in str(caught.value)


def test_damaged_keys_schedules_and_audit_entries_are_left_out(
    storage: Storage, tmp_path: Path
) -> None:
    from raysys.workflow import _schedule

    jobs = tmp_path / "jobs"
    jobs.mkdir()
    for name in ("a", "b"):
        create_key(storage, name)
        _schedule.add(storage, name, "0 2 * * *", "python -m hello", jobs)
    (entry,) = [one for one in audit.read(storage, action="key") if one.subject == "a"]
    storage.write_bytes("serve/keys/a.json", b"{")
    storage.write_bytes("schedules/a/schedule.json", b"")
    storage.write_bytes("schedules/b/last.json", b"[")
    (file,) = [path for path in Path(storage.root, "audit").rglob("*.json")
               if '"a"' in path.read_text() and "key.add" in path.read_text()]  # fmt: skip
    file.write_text(file.read_text()[:20])
    assert [key.name for key in read_keys(storage)] == ["b"]
    assert [schedule.name for schedule in _schedule.list_schedules(storage)] == ["b"]
    assert _schedule.last_run(storage, "b") == {}
    left = list(audit.read(storage))
    assert [one.subject for one in left if one.action == "key.add"] == ["b"]
    assert entry not in left
