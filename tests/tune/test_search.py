"""A search through Ray Tune: what comes back, what failed and why, what is refused."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys import train
from raysys.cluster import Resources
from raysys.data import Table
from raysys.errors import RaysysError, ResourceError
from raysys.storage import Storage
from raysys.tune import Choice, Float, Integer, Population, Report, Space, search

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPACE: Space = {"x": Float(0, 1)}


def objective(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
    shift = tables["target"]["shift"][0].as_py()
    for done in range(1, 5):
        score = -((settings["x"] - shift) ** 2) - (settings["kind"] == "bad") - 1 / done

        def save(folder: Path, score: float = score) -> None:
            (folder / "score").write_text(str(score))

        report({"score": score}, save=save)


def test_the_best_trial_its_rounds_and_its_checkpoint_come_back(storage: Storage) -> None:
    table = Table.load(lambda: pa.table({"shift": [2.0]}))
    space: Space = {"x": Float(-10, 10), "kind": Choice(("good", "bad")), "n": Integer(1, 3)}
    found = search(
        "first", objective, {"target": table}, space, storage, metric="score", trials=8, rounds=4,
        defaults={"x": 0.0, "kind": "good", "n": 2}, cpus_per_trial=1,
    )  # fmt: skip
    assert len(found.trials) == 8
    assert found.trials[0].settings == {"x": 0.0, "kind": "good", "n": 2}
    assert found.score >= -4.25  # that of the defaults
    assert found.score == max(one["score"] for trial in found.trials for one in trial.rounds)
    assert found.rounds == 4
    assert {trial.state for trial in found.trials} == {"finished", "stopped"}
    assert all(0 <= trial.cpu_seconds <= 4 * trial.seconds + 0.1 for trial in found.trials)
    with found.checkpoint.as_directory() as folder:
        assert float((Path(folder) / "score").read_text()) == found.score
    assert found.table().count("*") == 1
    assert found.plot("seconds", "score").startswith(b"\x89PNG")


def test_a_search_outlives_a_failing_trial_and_learns_from_an_earlier_one(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    def fragile(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
        if settings["x"] == 0.5:
            raise ValueError("no such column: age")
        report({"score": settings["x"], "cost": settings["x"] ** 2})

    asked: dict[str, Any] = {"cpus_per_trial": 1, "trials": 3}
    metric = {"score": "max", "cost": "min"}
    found = search("one", fragile, {}, SPACE, storage, metric=metric, defaults={"x": 0.5}, **asked)
    assert [trial.state for trial in found.trials] == ["failed", "finished", "finished"]
    assert "ValueError: no such column: age" in capsys.readouterr().out
    assert found.front == found.trials[1:]
    with pytest.raises(RaysysError, match=r"choose one of found\.front"):
        _ = found.best
    space = {"x": Float(0, found.trials[1].settings["x"])}
    search("two", fragile, {}, space, storage, metric="score", earlier=["one"], **asked)
    kept = 1 + (found.trials[2].settings["x"] <= found.trials[1].settings["x"])
    assert f"learns from {kept} of 3 trials of one" in capsys.readouterr().out


def test_a_search_of_failing_trials_ends_with_their_reason(storage: Storage) -> None:
    def broken(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
        report({"scores": 1.0})

    with pytest.raises(RaysysError, match=r"judges by 'score'.*report a finite number"):
        search(
            "broken", broken, {}, SPACE, storage, metric="score", trials=9, cpus_per_trial=1,
            max_failed=0,
        )  # fmt: skip


def test_a_population_goes_on_from_what_the_best_saved(storage: Storage) -> None:
    def write(size: float, folder: Path) -> None:
        (folder / "size").write_text(repr(size))

    def grow(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
        folder = report.resume()
        size = float((folder / "size").read_text()) if folder else 0.0
        while True:
            size += settings["x"]
            report({"size": size}, save=functools.partial(write, size))

    found = search(
        "grown", grow, {}, SPACE, storage, metric="size", searcher=Population(size=4, every=1),
        rounds=3, cpus_per_trial=1,
    )  # fmt: skip
    assert len(found.trials) == 12
    for trial in found.trials[4:]:
        parent = found.trials[trial.parent or 0]
        grown = parent.rounds[-1]["size"] + trial.settings["x"]
        assert trial.rounds[-1]["size"] == pytest.approx(grown, abs=1e-12)
    assert found.score > 3 * sorted(trial.settings["x"] for trial in found.trials[:4])[-2]


def test_trials_that_can_never_fit_are_refused_with_what_would(storage: Storage) -> None:
    with pytest.raises(ResourceError, match="not even one trial fits"):
        search("big", objective, {}, SPACE, storage, metric="score", trials=1, cpus_per_trial=99)
    # Three trials fit on five CPUs, but not with two workers each.
    with pytest.raises(ResourceError, match=r"\(1 \+ 2 nested\).*concurrency=1 fits"):
        search(
            "nested", objective, {}, SPACE, storage, metric="score", trials=4, concurrency=3,
            cpus_per_trial=1, nested=Resources(cpus=2, gpus=0),
        )  # fmt: skip


def test_training_inside_a_trial_gets_the_workers_that_were_kept_for_it(storage: Storage) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=400)
    rows = pa.table({"a": features, "label": (features > 0).astype(np.float32)})
    table = Table.from_arrow(rows).repartition(2)

    def boosted(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
        how = train.BoostSettings(objective="binary:logistic", num_boost_round=3, num_actors=2)
        train.boost(table, how, label="label")
        report({"score": settings["x"]})

    asked: dict[str, Any] = {"metric": "score", "trials": 1, "cpus_per_trial": 1}
    with pytest.raises(RaysysError, match=r"nested=Resources\(cpus=2, gpus=0\)"):
        search("undeclared", boosted, {}, SPACE, storage, **asked)
    search("declared", boosted, {}, SPACE, storage, nested=Resources(cpus=2, gpus=0), **asked)
