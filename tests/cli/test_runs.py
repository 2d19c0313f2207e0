"""`raysys lineage`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys import cli
from raysys.data import Lineage
from raysys.errors import RaysysError
from raysys.storage import Storage


def test_lineage_goes_from_a_run_back_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path))
    files = {"files": [{"file": "/data/a.csv", "bytes": 12, "modified": "2013-01-01"}]}
    read = Lineage("read csv", files, rows=7)
    last = Lineage("filter", {"predicate": "x > 1"}, (read,), rows=3, fingerprint="f00")
    storage = Storage()
    lineage = last.write(storage)
    facts = {"tables": {"train": {"rows": 3, "fingerprint": "f00", "lineage": lineage}}}
    record = {"id": "job-1", "git_commit": "c0ffee", "facts": facts}
    storage.write_json("runs/job-1/run.json", record)

    of_run = CliRunner().invoke(cli.app, ["lineage", "job-1"]).stdout
    for part in ("c0ffee", "train: 3 rows, fingerprint f00", "x > 1", "file /data/a.csv, 12 bytes"):
        assert part in of_run
    of_table = CliRunner().invoke(cli.app, ["lineage", lineage]).stdout
    assert of_table.strip() in of_run
    assert of_table.index("filter, 3 rows") < of_table.index("read csv, 7 rows")
    unknown = CliRunner().invoke(cli.app, ["lineage", "no-such"])
    assert isinstance(unknown.exception, RaysysError)
    assert "'no-such' is not a Table or run in" in str(unknown.exception)
    assert "no model 'no-such'" in str(unknown.exception)


def test_the_steps_of_a_run_are_drawn_without_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path))
    step = {"name": "make", "state": "running", "inputs": []}
    record = {"id": "a-20261201-000000-abcd", "status": "RUNNING", "steps": [step]}
    Storage(tmp_path).write_json("runs/a-20261201-000000-abcd/run.json", record)
    shown = CliRunner().invoke(cli.app, ["steps"]).stdout.splitlines()
    assert shown[0].startswith("whether it still runs is not known: ")
    assert shown[1:] == ["a-20261201-000000-abcd: running", "▶ make  running"]
