"""A search finds, stops early, repeats itself, and says what failed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raysys.data import Table
from raysys.errors import RaysysError, ResourceError
from raysys.storage import Storage
from raysys.tune import Choice, Float, Found, Integer, Report, search

pytestmark = pytest.mark.usefixtures("ray_cluster")


def objective(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
    shift = tables["target"]["shift"][0].as_py()
    for done in range(1, 5):
        score = -((settings["x"] - shift) ** 2) - (settings["kind"] == "bad") - 1 / done

        def save(folder: Path, score: float = score) -> None:
            (folder / "score").write_text(str(score))

        report({"score": score}, save=save)


def run(storage: Storage, name: str) -> Found:
    table = Table.load(lambda: pa.table({"shift": [2.0]}))
    space = {"x": Float(-10, 10), "kind": Choice(("good", "bad")), "n": Integer(1, 3)}
    return search(
        name,
        objective,
        {"target": table},
        space,
        storage,
        metric="score",
        trials=10,
        rounds=4,
        defaults={"x": 0.0, "kind": "good", "n": 2},
        cpus_per_trial=1,
    )


def test_the_best_trial_its_rounds_and_its_checkpoint_come_back(storage: Storage) -> None:
    found = run(storage, "first")
    assert len(found.trials) == 10
    assert found.score > -4.25  # that of the defaults, which are tried first
    assert found.trials[0]["x"] == 0.0
    assert found.score == max(trial["score"] for trial in found.trials)
    assert found.rounds == 4
    assert any(trial["round"] < 4 for trial in found.trials), "nothing was stopped early"
    with found.checkpoint.as_directory() as folder:
        assert float((Path(folder) / "score").read_text()) == found.score
    again = run(storage, "again")
    assert (again.settings, again.trials) == (found.settings, found.trials)


def test_a_failing_trial_ends_the_search_with_its_reason(storage: Storage) -> None:
    def broken(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
        raise ValueError("no such column: age")

    with pytest.raises(RaysysError, match="no such column: age"):
        search("broken", broken, {}, {"x": Float(0, 1)}, storage, metric="score", trials=1)


def test_a_trial_that_can_never_fit_is_refused(storage: Storage) -> None:
    with pytest.raises(ResourceError, match="needs 99 CPUs"):
        search("big", objective, {}, {"x": Float(0, 1)}, storage, metric="score", cpus_per_trial=99)
