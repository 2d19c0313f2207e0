import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raysys import audit
from raysys.errors import StorageError
from raysys.storage import Storage


def test_a_line_says_who_what_when_and_from_where(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-itself")
    monkeypatch.setenv("LOGNAME", "ann")
    before = datetime.now(UTC)
    audit.record(storage, "deploy", "films", version=3)
    (line,) = audit.read(storage)
    assert (line.action, line.subject, line.facts) == ("deploy", "films", {"version": 3})
    assert line.who["user"] == "ann"
    assert line.who["token"].startswith("sha256:")
    assert line.whence["host"]
    assert line.whence["address"]
    assert "job" not in line.whence
    assert before <= datetime.fromisoformat(line.when) <= datetime.now(UTC)
    assert "deploy films by ann" in str(line)


def test_no_line_holds_the_token(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-itself")
    audit.record(storage, "up", "127.0.0.1:6379")
    written = [path.read_text() for path in Path(storage.root).rglob("*.json")]
    assert len(written) == 1
    assert "the-token-itself" not in written[0]


def test_two_tokens_have_two_fingerprints(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    audit.record(storage, "up", "by file")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "one")
    audit.record(storage, "up", "by variable")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "two")
    audit.record(storage, "up", "another")
    first, second, third = (line.who["token"] for line in audit.read(storage))
    assert first == second != third


def test_lines_come_in_the_order_of_time_and_each_is_a_file_of_its_own(storage: Storage) -> None:
    for number in range(20):
        audit.record(storage, "key.add", f"key{number}")
    found = [line.subject for line in audit.read(storage)]
    assert found == [f"key{number}" for number in range(20)]
    assert len(list(Path(storage.root).glob("audit/*/*.json"))) == 20


def test_lines_are_picked_by_action_and_time(storage: Storage) -> None:
    for action in ("job.submit", "job.stop", "jobless", "deploy"):
        audit.record(storage, action, "x")
    assert [line.action for line in audit.read(storage, action="job")] == ["job.submit", "job.stop"]
    assert [line.action for line in audit.read(storage, action="job.stop")] == ["job.stop"]
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert list(audit.read(storage, since=later)) == []
    day_before = datetime.now(UTC) - timedelta(days=1)
    assert len(list(audit.read(storage, since=day_before))) == 4
    assert list(audit.read(Storage(storage.uri("empty")))) == []


def test_days_before_are_not_even_opened(storage: Storage) -> None:
    storage.write_bytes("audit/2001-01-01/20010101T000000.000000Z-0.json", b"no line")
    audit.record(storage, "deploy", "x")
    assert len(list(audit.read(storage, since=datetime.now(UTC) - timedelta(hours=1)))) == 1


def test_what_cannot_be_written_down_must_not_be_done(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="'films' is not done, since its audit line cannot be"):
        audit.record(Storage(tmp_path), "deploy", "films")


def test_inside_a_submitted_job_its_submitter_is_named(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysys.audit import _identity as _who

    metadata = {**_who.submitter(), "job_submission_id": "raysubmit_7"}
    monkeypatch.setenv("LOGNAME", "the-cluster's-user")
    monkeypatch.setattr(_who, "sys", type("NoRay", (), {"modules": {}}))
    config = json.dumps({"metadata": metadata | {"raysys.by": "ann"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", config)
    audit.record(storage, "deploy", "films")
    (line,) = audit.read(storage)
    assert line.who["user"] == "ann"
    assert line.whence["job"] == "raysubmit_7"
    assert line.whence["submitted_from"] == metadata["raysys.from"]


def test_a_job_begins_with_a_line_and_other_processes_do_not(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysys.audit import _identity as _who

    monkeypatch.setattr(_who, "sys", type("NoRay", (), {"modules": {}}))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    audit.record_start(storage)
    assert list(audit.read(storage)) == []
    config = {"metadata": {"job_submission_id": "raysubmit_8"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    audit.record_start(storage)
    assert [(line.action, line.subject) for line in audit.read(storage)] == [
        ("job.start", "raysubmit_8")
    ]


def test_passwords_in_uris_are_left_out(storage: Storage) -> None:
    audit.record(storage, "job.submit", "x", command="run --db postgresql://ray:hunter2@host/db")
    (line,) = audit.read(storage)
    assert line.facts == {"command": "run --db postgresql://ray:***@host/db"}
