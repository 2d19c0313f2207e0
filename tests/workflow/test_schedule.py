"""Scheduled jobs: due runs, and the jobs that are started on a cluster."""

import dataclasses
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ray

from raysys.cli import _jobs
from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.workflow import _schedule, _scheduler
from raysys.workflow._schedule import Schedule


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def nightly(timezone: str = "UTC") -> Schedule:
    return Schedule("nightly", "30 2 * * *", timezone, "true", {}, start_s=at("2026-03-01T00:00"))


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        (None, "2026-03-01T02:29:59", None),
        (None, "2026-03-01T02:30:00", "2026-03-01T02:30"),
        (None, "2026-03-01T09:00", "2026-03-01T02:30"),
        ("2026-03-01T02:30", "2026-03-01T09:00", None),
        ("2026-03-01T02:30", "2026-03-02T02:30:01", "2026-03-02T02:30"),
        ("2026-03-01T02:30", "2026-03-05T09:00", "2026-03-05T02:30"),  # missed runs are one
    ],
)
def test_due_runs(last: str | None, now: str, due: str | None) -> None:
    found = nightly().due(last and at(last), at(now), cluster_start_s=0.0)
    assert found == (due and at(due))


@pytest.mark.parametrize(
    ("last", "cluster_start", "due"),
    [
        (None, "2026-02-28T00:00", False),  # the cluster in which it was added
        (None, "2026-03-02T00:00", True),
        ("2026-03-02T00:00", "2026-03-02T00:00", False),
        ("2026-03-02T00:00", "2026-03-03T00:00", True),
    ],
)
def test_a_run_is_due_at_each_start_of_a_cluster(
    last: str | None, cluster_start: str, due: bool
) -> None:
    schedule = dataclasses.replace(nightly(), cron="@reboot")
    start_s = at(cluster_start)
    assert schedule.next(at("2026-03-04T00:00")) is None
    for now in ("2026-03-03T00:00", "2026-09-01T00:00"):
        assert schedule.due(last and at(last), at(now), start_s) == (start_s if due else None)


def test_time_zones_and_summer_time_count() -> None:
    schedule = nightly("Europe/Berlin")
    assert schedule.next(at("2026-01-10T00:00")) == at("2026-01-10T01:30")
    assert schedule.next(at("2026-07-10T00:00")) == at("2026-07-10T00:30")


@pytest.mark.parametrize(
    ("name", "cron", "zone", "said"),
    [
        ("a b", "* * * * *", "UTC", "schedule 'a b'"),
        ("a", "61 * * * *", "UTC", "is not a cron expression"),
        ("a", "* * *", "UTC", "has 3 fields, not 5"),
        ("a", "@start", "UTC", "has 1 fields, not 5: .* or @reboot"),
        ("a", "0 0 2 * * *", "UTC", "has 6 fields, not 5"),
        ("a", "* * * * *", "Europe", "unknown time zone 'Europe'"),
        ("a", "* * * * *", "Mars", "unknown time zone 'Mars'"),
        ("a", "0 0 31 2 *", "UTC", "Bad day-of-month"),
    ],
)
def test_invalid_schedules_are_refused(
    name: str, cron: str, zone: str, said: str, storage: Storage, tmp_path: Path
) -> None:
    with pytest.raises(RaysysError, match=said):
        _schedule.add(storage, name, cron, "true", tmp_path, timezone=zone)
    assert _schedule.list_schedules(storage) == []


def test_a_new_cluster_takes_up_schedules_only_where_there_are_any(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setenv("RAYSYS_STORAGE", storage.root)
    monkeypatch.setattr(_jobs, "run_schedule_action", lambda *words: started.append(words[-1]))
    folder = tmp_path / "code"
    folder.mkdir()
    _jobs.resume_schedules("http://127.0.0.1:8265")
    assert started == []
    _schedule.add(storage, "boot", "@reboot", "true", folder)
    _jobs.resume_schedules("http://127.0.0.1:8265")
    assert started == ["list"]
    _schedule.remove(storage, "boot")
    _jobs.resume_schedules("http://127.0.0.1:8265")
    assert started == ["list"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_is_started_once_for_each_moment(storage: Storage, tmp_path: Path) -> None:
    from raysys import cluster

    folder, now = tmp_path / "code", at("2026-03-01T00:00")
    folder.mkdir()
    (folder / "hello.txt").write_text("hello")
    _schedule.add(storage, "hello", "0 * * * *", "cat hello.txt", folder, now_s=now)

    def tick(moment: str) -> list[str]:
        # A new one each time, as after a restart: what it knows is under the storage root.
        return _scheduler.Scheduler(storage, now, clock=lambda: at(moment)).tick()

    assert tick("2026-03-01T00:59") == []
    deadline = time.monotonic() + 60
    while not (started := tick("2026-03-01T01:00")) and time.monotonic() < deadline:
        time.sleep(1)  # a cluster that has just started takes no jobs yet
    (job,) = started
    assert job == "hello-20260301T0100Z"
    assert tick("2026-03-01T01:01") == []
    jobs = cluster.Jobs(_scheduler._dashboard_url())
    while not jobs.find(job).is_over and time.monotonic() < deadline:
        time.sleep(0.2)
    assert jobs.find(job).status == "SUCCEEDED"
    assert "\nhello" in jobs.logs(job)
    storage.remove("schedules/hello/last.json")  # died before it could note the job
    assert tick("2026-03-01T01:02") == [job]
    assert len([one for one in jobs.all() if one.id.startswith("hello-")]) == 1
    _schedule.remove(storage, "hello")
    assert tick("2026-03-01T02:00") == []
    with pytest.raises(RaysysError, match="no schedule 'hello'; there are: none"):
        _schedule.remove(storage, "hello")


@pytest.mark.usefixtures("ray_cluster")
def test_the_actor_survives_its_death(storage: Storage) -> None:
    actor = _scheduler.start(storage)
    assert _scheduler.start(storage) == actor
    ray.kill(actor, no_restart=False)
    assert ray.get(actor.ping.remote(), timeout=60)
    ray.kill(actor)
