"""Results of an age are removed, and computed again."""

from datetime import UTC, datetime, timedelta

from raysys import audit
from raysys.storage import Storage
from raysys.workflow import prune


def test_old_results_go_and_others_stay(storage: Storage) -> None:
    for key, run in (("a1", "a-20260101-000000-1f2e"), ("b2", "a-b-20260301-120000-1f2e")):
        storage.write_json(f"steps/a/etl/{key}/step.json", {"run": run})
        storage.write_bytes(f"steps/a/etl/{key}/result/value.pickle", b"")
    storage.write_bytes("steps/a/etl/c3/work/checkpoint", b"")  # of a run that is at it
    now = datetime(2026, 3, 2, tzinfo=UTC)
    assert prune(storage, timedelta(days=30), now) == ["steps/a/etl/a1"]
    assert storage.names("steps/a/etl") == ["b2", "c3"]
    (line,) = audit.read(storage)
    assert (line.action, line.subject) == ("result.delete", "steps/a/etl/a1")
    assert prune(storage, timedelta(hours=12), now) == []
