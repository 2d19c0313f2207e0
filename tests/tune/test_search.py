"""Searches through Ray Tune: results, failures and refusals."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys import train
from raysys.cluster import Resources
from raysys.data import Table
from raysys.errors import RaysysError, ResourceError
from raysys.storage import Storage
from raysys.tune import (
    Choice,
    Float,
    Grid,
    Integer,
    Population,
    Sampler,
    SearchLimits,
    Space,
    TrialReporter,
    TrialResources,
    TrialScheduler,
    search,
)
from tests.train import tasks

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPACE: Space = {"x": Float(0, 1)}
ONE_CPU = TrialResources(cpus=1)
Tables = Mapping[str, pa.Table]


def objective(params: dict[str, Any], tables: Tables, report: TrialReporter) -> None:
    shift = tables["target"]["shift"][0].as_py()
    for round_ in range(1, 5):
        score = -((params["x"] - shift) ** 2) - (params["kind"] == "bad") - 1 / round_

        def save(folder: Path, score: float = score) -> None:
            (folder / "score").write_text(str(score))

        report({"score": score}, save=save)


def test_a_result_has_the_best_trial_its_rounds_and_its_checkpoint(storage: Storage) -> None:
    table = Table.load(lambda: pa.table({"shift": [2.0]}))
    space: Space = {"x": Float(-10, 10), "kind": Choice(("good", "bad")), "n": Integer(1, 3)}
    start = {"x": 0.0, "kind": "good", "n": 2}
    result = search(
        "first", objective, {"target": table}, space, storage, metric="score", n_trials=8,
        sampler=Sampler(enqueue=start), scheduler=TrialScheduler(4), resources=ONE_CPU,
    )  # fmt: skip
    assert len(result.trials) == 8
    assert result.trials[0].params == start
    assert result.best_value >= -4.25  # that of the enqueued trial
    scores = [metrics["score"] for trial in result.trials for metrics in trial.rounds]
    assert result.best_value == max(scores)
    assert result.best_round == 4
    assert {trial.state for trial in result.trials} == {"finished", "stopped"}
    assert all(0 <= trial.cpu_seconds <= 4 * trial.seconds + 0.1 for trial in result.trials)
    checkpoint = result.checkpoint()
    assert checkpoint
    with checkpoint.as_directory() as folder:
        assert float((Path(folder) / "score").read_text()) == result.best_value
    assert result.table().count("*") == 1
    assert result.plot("seconds", "score").startswith(b"\x89PNG")
    summary = f"best score={result.best_value:.5g} with {result.best_params}; 8 trials ("
    assert summary in repr(result)
    assert result._repr_html_().count("<tr>") == 9


def test_a_search_survives_a_failing_trial_and_learns_from_an_earlier_one(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    def fragile(params: dict[str, Any], tables: Tables, report: TrialReporter) -> None:
        if params["x"] == 0.5:
            raise SystemExit("no such column: age")
        report({"score": params["x"], "cost": params["x"] ** 2})

    options: dict[str, Any] = {"resources": ONE_CPU, "n_trials": 3}
    first = search(
        "one", fragile, {}, SPACE, storage, metric={"score": "maximize", "cost": "minimize"},
        sampler=Sampler(enqueue={"x": 0.5}), **options,
    )  # fmt: skip
    assert [trial.state for trial in first.trials] == ["failed", "finished", "finished"]
    said = capsys.readouterr().out
    assert "SystemExit: no such column: age at tests/tune/test_search.py:" in said
    assert said.count('raise SystemExit("no such column: age")') == 1  # its traceback
    assert first.pareto_front == first.trials[1:]
    assert "2 on the Pareto front of score, cost; 3 trials (1 failed, 2 finished)" in repr(first)
    with pytest.raises(RaysysError, match=r"choose one of result\.pareto_front"):
        _ = first.best_trial
    space: Space = {"x": Float(0, first.trials[1].params["x"])}
    search(
        "two", fragile, {}, space, storage, metric="score",
        sampler=Sampler(warm_start=["one"]), **options,
    )  # fmt: skip
    usable = 1 + (first.trials[2].params["x"] <= first.trials[1].params["x"])
    assert f"learns from {usable} of 3 trials of one" in capsys.readouterr().out


def test_a_search_of_failing_trials_ends_with_their_reason(storage: Storage) -> None:
    def broken(params: dict[str, Any], tables: Tables, report: TrialReporter) -> None:
        report({"scores": 1.0})

    with pytest.raises(RaysysError, match=r"ends with trial 0.* 'score': report a finite number"):
        search("broken", broken, {}, SPACE, storage, metric="score", n_trials=30, resources=ONE_CPU)


def test_a_population_continues_from_the_checkpoints_of_the_best(storage: Storage) -> None:
    def write(size: float, folder: Path) -> None:
        (folder / "size").write_text(repr(size))

    def grow(params: dict[str, Any], tables: Tables, report: TrialReporter) -> None:
        folder = report.resume()
        size = float((folder / "size").read_text()) if folder else 0.0
        while True:
            size += params["x"]
            report({"size": size}, save=functools.partial(write, size))

    result = search(
        "grown", grow, {}, SPACE, storage, metric="size", sampler=Population(size=4, every=1),
        scheduler=TrialScheduler(max_rounds=3), resources=ONE_CPU,
    )  # fmt: skip
    assert len(result.trials) == 12
    for trial in result.trials[4:]:
        parent = result.trials[trial.parent or 0]
        size = parent.rounds[-1]["size"] + trial.params["x"]
        assert trial.rounds[-1]["size"] == pytest.approx(size, abs=1e-12)
    assert result.best_value > 3 * sorted(trial.params["x"] for trial in result.trials[:4])[-2]


def test_trials_that_can_never_fit_are_refused_with_a_remedy(storage: Storage) -> None:
    options: dict[str, Any] = {"metric": "score", "n_trials": 4}
    with pytest.raises(ResourceError, match="not even one trial fits"):
        search("big", objective, {}, SPACE, storage, resources=TrialResources(cpus=99), **options)
    # Three trials fit on five CPUs, but not with two workers each.
    resources = TrialResources(cpus=1, nested=Resources(cpus=2, gpus=0), max_concurrent=3)
    with pytest.raises(ResourceError, match=r"\(1 \+ 2 nested\).*max_concurrent=1 fits"):
        search("nested", objective, {}, SPACE, storage, resources=resources, **options)


def test_searches_without_an_end_or_a_space_are_refused(storage: Storage) -> None:
    with pytest.raises(RaysysError, match="has no end: give n_trials"):
        search("endless", objective, {}, SPACE, storage, metric="score")
    with pytest.raises(RaysysError, match="empty space"):
        search("empty", objective, {}, {}, storage, metric="score", n_trials=1)
    with pytest.raises(RaysysError, match="learns nothing from earlier searches"):
        Sampler("random", warm_start=["one"])


def test_training_inside_a_trial_gets_its_nested_resources(storage: Storage) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=400)
    rows = pa.table({"a": features, "label": (features > 0).astype(np.float32)})
    table = Table.from_arrow(rows).repartition(2)

    def boosted(params: dict[str, Any], tables: Tables, report: TrialReporter) -> None:
        settings = train.BoostSettings(objective="binary:logistic", num_boost_round=3, num_actors=2)
        train.boost(table, settings, label="label")
        report({"score": params["x"]})

    options: dict[str, Any] = {"metric": "score", "limits": SearchLimits(max_failed_trials=9)}
    nested = Resources(cpus=2, gpus=0)
    with pytest.raises(RaysysError, match=r"ends with trial 0.*nested=Resources\(cpus=2, gpus=0\)"):
        search("nested", boosted, {}, SPACE, storage, resources=ONE_CPU, n_trials=30, **options)
    assert storage.names("searches/nested/trials") == ["00000.json"]
    resources = TrialResources(cpus=1, nested=nested)
    result = search(
        "nested", boosted, {}, SPACE, storage, resources=resources, n_trials=1, **options
    )
    assert [trial.state for trial in result.trials] == ["finished"]


def test_a_fit_inside_a_trial_needs_no_more_cpus_than_its_workers(storage: Storage) -> None:
    def trained(params: dict[str, Any], tables: Tables, report: TrialReporter) -> None:
        settings = train.TrainSettings(num_workers=int(params["workers"]), epochs=1, batch_size=256)
        name = f"trial-{params['workers']}"
        table = Table.from_arrow(tables["rows"])
        result = train.fit(name, tasks.Regression(), {"rows": table}, settings, storage)
        report({"loss": result.history[-1]["loss"]})

    others = ray.util.placement_group([{"CPU": 1}] * 3)  # of five CPUs two are left
    ray.get(others.ready())
    try:
        result = search(
            "fits", trained, {"rows": Table.from_arrow(tasks.rows())}, {"workers": Choice((1, 2))},
            storage, metric="loss", direction="minimize", n_trials=2, sampler=Grid(),
            limits=SearchLimits(max_failed_trials=2),
            resources=TrialResources(cpus=0, nested=Resources(cpus=1, gpus=0)),
        )  # fmt: skip
    finally:
        ray.util.remove_placement_group(others)
    alone, refused = sorted(result.trials, key=lambda trial: trial.params["workers"])
    assert alone.state == "finished"
    assert alone.cpu_seconds >= alone.seconds  # of the CPU that its worker holds
    assert "needs 2 CPUs and 0 GPUs, and the search reserves 1" in str(refused.reason)
