import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raysys import audit
from raysys.errors import StorageError
from raysys.storage import Storage


def test_an_entry_names_actor_action_time_and_origin(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-itself")
    monkeypatch.setenv("LOGNAME", "ann")
    before = datetime.now(UTC)
    audit.record(storage, "deploy", "films", version=3)
    (entry,) = audit.read(storage)
    assert (entry.action, entry.subject, entry.details) == ("deploy", "films", {"version": 3})
    assert entry.actor["user"] == "ann"
    assert entry.actor["token"].startswith("sha256:")
    assert entry.origin["host"]
    assert entry.origin["address"]
    assert "job" not in entry.origin
    assert before <= datetime.fromisoformat(entry.time) <= datetime.now(UTC)
    assert "deploy films by ann" in str(entry)


def test_no_entry_contains_the_token(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
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
    first, second, third = (entry.actor["token"] for entry in audit.read(storage))
    assert first == second != third


def test_entries_are_chronological_and_each_is_a_file(storage: Storage) -> None:
    for number in range(20):
        audit.record(storage, "key.add", f"key{number}")
    subjects = [entry.subject for entry in audit.read(storage)]
    assert subjects == [f"key{number}" for number in range(20)]
    assert len(list(Path(storage.root).glob("audit/*/*.json"))) == 20


def test_entries_are_filtered_by_action_and_time(storage: Storage) -> None:
    for action in ("job.submit", "job.stop", "jobless", "deploy"):
        audit.record(storage, action, "x")
    assert [entry.action for entry in audit.read(storage, action="job")] == [
        "job.submit",
        "job.stop",
    ]
    assert [entry.action for entry in audit.read(storage, action="job.stop")] == ["job.stop"]
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert list(audit.read(storage, since=later)) == []
    day_before = datetime.now(UTC) - timedelta(days=1)
    assert len(list(audit.read(storage, since=day_before))) == 4
    assert list(audit.read(Storage(storage.uri("empty")))) == []


def test_earlier_days_are_not_opened(storage: Storage) -> None:
    storage.write_bytes("audit/2001-01-01/20010101T000000.000000Z-0.json", b"no entry")
    audit.record(storage, "deploy", "x")
    assert len(list(audit.read(storage, since=datetime.now(UTC) - timedelta(hours=1)))) == 1


def test_an_unwritable_log_refuses_the_action(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="'films' refused: cannot write the audit log"):
        audit.record(Storage(tmp_path), "deploy", "films")


def test_inside_a_submitted_job_its_submitter_is_named(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysys.audit import _identity

    metadata = {**_identity.submitter(), "job_submission_id": "raysubmit_7"}
    monkeypatch.setenv("LOGNAME", "the-cluster's-user")
    monkeypatch.setattr(_identity, "sys", type("NoRay", (), {"modules": {}}))
    config = json.dumps({"metadata": metadata | {"raysys.by": "ann"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", config)
    audit.record(storage, "deploy", "films")
    (entry,) = audit.read(storage)
    assert entry.actor["user"] == "ann"
    assert entry.origin["job"] == "raysubmit_7"
    assert entry.origin["submitted_from"] == metadata["raysys.from"]


def test_the_start_of_a_job_is_recorded_and_that_of_other_processes_is_not(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysys.audit import _identity

    monkeypatch.setattr(_identity, "sys", type("NoRay", (), {"modules": {}}))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    audit.record_start(storage)
    assert list(audit.read(storage)) == []
    config = {"metadata": {"job_submission_id": "raysubmit_8"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    audit.record_start(storage)
    assert [(entry.action, entry.subject) for entry in audit.read(storage)] == [
        ("job.start", "raysubmit_8")
    ]


def test_passwords_in_uris_are_masked(storage: Storage) -> None:
    audit.record(storage, "job.submit", "x", command="run --db postgresql://ray:hunter2@host/db")
    (entry,) = audit.read(storage)
    assert entry.details == {"command": "run --db postgresql://ray:***@host/db"}
