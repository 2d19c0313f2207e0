"""Samplers on functions with a known optimum."""

import math
import statistics
from collections.abc import Collection
from typing import Any

import pytest

from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.tune import Choice, Float, Grid, Integer, Objectives, Population, Space, Trial
from raysys.tune._space import grid
from tests.tune.local_ledger import open_ledger, report_of, run, steps

SPACE: Space = {
    "x": Float(-5, 5),
    "rate": Float(1e-4, 1, log=True),
    "n": Integer(1, 9),
    "kind": Choice(("good", "bad")),
}


def bowl(params: dict[str, Any], round_: int) -> float:
    """At most 0, at x = 2, rate = 0.01, n = 4, good; less biased in later rounds."""
    distance = (params["x"] - 2) ** 2 + (math.log10(params["rate"]) + 2) ** 2
    distance += (params.get("n", 4) - 4) ** 2 / 4 + (params.get("kind") == "bad")
    return -distance - 1 / round_


def median_best(storage: Storage, method: Any, space: Space, n_trials: int) -> float:
    """Median over three seeds of the best value."""
    best = []
    for seed in range(3):
        folder = Storage(storage.uri(f"{method}-{seed}"))
        ledger = open_ledger(folder, space, method=method, n_trials=n_trials, seed=seed)
        best.append(max(trial.rounds[-1]["y"] for trial in run(ledger, bowl)))
    return statistics.median(best)


@pytest.mark.parametrize(("method", "names"), [("tpe", SPACE), ("gp", ("x", "rate"))])
def test_a_model_beats_random_search(storage: Storage, method: str, names: Collection[str]) -> None:
    space = {name: SPACE[name] for name in names}
    n_trials = 25 if method == "tpe" else 7
    modelled = median_best(storage, method, space, n_trials)
    assert modelled > median_best(storage, "random", space, n_trials)
    assert modelled > -2.0


def test_bohb_beats_random_search_with_the_same_rounds(storage: Storage) -> None:
    budget = 27 * 12
    best: dict[str, list[float]] = {"bohb": [], "random": []}
    for method, scores in best.items():
        for seed in range(3):
            folder = Storage(storage.uri(f"{method}-{seed}"))
            ledger = open_ledger(
                folder, SPACE, method=method, n_trials=120, max_rounds=27,
                grace_rounds=1 if method == "bohb" else 27, seed=seed,
            )  # fmt: skip
            for _ in steps(ledger, bowl):
                trials = list(ledger.trials.values())
                if sum(trial.last_round for trial in trials) >= budget:
                    break
            scores.append(max(trial.rounds[-1]["y"] for trial in trials if trial.rounds))
    assert statistics.median(best["bohb"]) > statistics.median(best["random"])


def test_a_grid_covers_every_cell_once_and_ends(storage: Storage) -> None:
    trials = run(open_ledger(storage, SPACE, method=Grid(points=3)), bowl)
    tried = [tuple(trial.params.values()) for trial in trials]
    assert sorted(tried) == sorted(tuple(cell.values()) for cell in grid(SPACE, 3))


def test_a_model_does_not_repeat_trials_of_a_small_space(storage: Storage) -> None:
    space: Space = {"n": Integer(1, 4), "kind": Choice(("a", "b"))}
    ledger = open_ledger(storage, space, n_trials=8)
    tried = {(t.params["n"], t.params["kind"]) for t in run(ledger, lambda s, _: -s["n"])}
    assert len(tried) >= 7


def test_several_metrics_approach_their_pareto_front(storage: Storage) -> None:
    # The front is x from 0 to 1 with z = 0.
    objectives = Objectives({"y": "maximize", "seconds": "maximize"})
    space: Space = {"x": Float(-9, 10), "z": Float(-9, 9)}
    ratios = []
    for seed in range(3):
        folder = Storage(storage.uri(str(seed)))
        ledger = open_ledger(
            folder, space, n_trials=40, max_rounds=2, objectives=objectives, seed=seed
        )
        while (trial := ledger.next_trial()) != "end":
            assert isinstance(trial, Trial)
            x, z = trial.params["x"], trial.params["z"]
            metrics = {"y": -(x**2) - z**2, "seconds": -((x - 1) ** 2) - z**2}
            ledger.record(trial.number, report_of(2, metrics, metrics))
        trials = [ledger.trials[number] for number in range(40)]
        assert {trial.state for trial in trials} == {"finished"}  # nothing is stopped early
        distances = [
            max(-trial.params["x"], trial.params["x"] - 1, 0) + abs(trial.params["z"])
            for trial in trials
        ]
        ratios.append(statistics.median(distances[-16:]) / statistics.median(distances[:8]))
    assert statistics.median(ratios) < 0.75


def test_a_population_copies_from_the_best_and_perturbs_the_copies(storage: Storage) -> None:
    size, every, rounds = 8, 2, 10
    space: Space = {"x": Float(0.1, 10), "n": Integer(1, 9), "kind": Choice(("good", "bad"))}
    ledger = open_ledger(storage, space, method=Population(size, every), max_rounds=rounds, seed=3)
    trials = run(ledger, lambda params, round_: round_ - params["x"])
    assert len(trials) == size * rounds // every
    copied = 0
    for trial in trials[size:]:
        generation = trial.number // size
        before = trials[(generation - 1) * size : generation * size]
        ranked = sorted(before, key=lambda t: -t.rounds[-1]["y"])  # stable
        own, parent = before[trial.number % size], trials[trial.parent or 0]
        assert (trial.start_round, trial.last_round) == (
            generation * every,
            (generation + 1) * every,
        )
        if own in ranked[-2:]:
            assert parent in ranked[:2]
            assert trial.params != parent.params
            assert all(value in space[name] for name, value in trial.params.items())
            copied += 1
        else:
            assert parent is own
            assert trial.params == own.params
    assert copied == 2 * (rounds // every - 1)
    assert min(t.params["x"] for t in trials) < min(t.params["x"] for t in trials[:size])


def test_a_population_does_not_wait_for_a_member_that_failed(storage: Storage) -> None:
    ledger = open_ledger(storage, {"x": Float(1, 2)}, method=Population(4), max_rounds=2)
    for number in range(4):
        trial = ledger.next_trial()
        assert isinstance(trial, Trial)
        report = {"failed": "no"} if number == 1 else report_of(1, {"y": trial.params["x"]})
        ledger.record(number, report)
    later = [trial.parent for trial in run(ledger, lambda params, _: params["x"])[4:]]
    assert 1 not in later
    assert None not in later


def test_trials_of_earlier_searches_count_like_own_ones(storage: Storage) -> None:
    before = run(open_ledger(Storage(storage.uri("a")), SPACE, n_trials=30), bowl)
    warm = open_ledger(Storage(storage.uri("b")), SPACE, n_trials=10, seed=5)
    warm.warm_start = before
    cold = open_ledger(Storage(storage.uri("c")), SPACE, n_trials=10, seed=5)
    warm_scores, cold_scores = (
        [trial.rounds[-1]["y"] for trial in run(ledger, bowl)] for ledger in (warm, cold)
    )
    assert statistics.median(warm_scores) > statistics.median(cold_scores)


def test_a_population_starts_from_the_best_earlier_trials(storage: Storage) -> None:
    space: Space = {"x": Integer(-5, 0)}
    earlier = run(
        open_ledger(Storage(storage.uri("a")), space, method=Grid(points=6)), best_is_zero
    )
    assert max(trial.rounds[-1]["y"] for trial in earlier) == 0.0
    ledger = open_ledger(Storage(storage.uri("b")), space, method=Population(4), max_rounds=1)
    ledger.warm_start = earlier
    starts = [trial.params["x"] for trial in run(ledger, best_is_zero)[:4]]
    assert starts == [0, -1, -2, -3]


def best_is_zero(params: dict[str, Any], _: int) -> float:
    return float(params["x"])


def test_methods_that_need_an_order_refuse_several_metrics(storage: Storage) -> None:
    several = Objectives({"a": "maximize", "b": "minimize"})
    for method in ("bohb", Population()):
        with pytest.raises(RaysysError, match="one metric"):
            open_ledger(storage, SPACE, method=method, objectives=several)
    with pytest.raises(RaysysError, match="'tpo'"):
        open_ledger(storage, SPACE, method="tpo")
