"""Each searcher finds what it should, on functions whose best is known."""

import math
import statistics
from collections.abc import Collection
from typing import Any

import pytest

from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.tune import Choice, Float, Goal, Grid, Integer, Population, Searcher, Space, Trial
from raysys.tune._space import grid
from tests.tune.local import open_ledger, run, steps

SPACE: Space = {
    "x": Float(-5, 5),
    "rate": Float(1e-4, 1, log=True),
    "n": Integer(1, 9),
    "kind": Choice(("good", "bad")),
}


def bowl(settings: dict[str, Any], done: int) -> float:
    """At most 0, for x = 2, rate = 0.01, n = 4, good; a later round is nearer to the truth."""
    distance = (settings["x"] - 2) ** 2 + (math.log10(settings["rate"]) + 2) ** 2
    distance += (settings.get("n", 4) - 4) ** 2 / 4 + (settings.get("kind") == "bad")
    return -distance - 1 / done


def median_best(storage: Storage, searcher: Searcher, space: Space, trials: int) -> float:
    """Of three seeds."""
    found = []
    for seed in range(3):
        folder = Storage(storage.uri(f"{searcher}-{seed}"))
        ledger = open_ledger(folder, space, searcher=searcher, trials=trials, seed=seed)
        found.append(max(trial.rounds[-1]["y"] for trial in run(ledger, bowl)))
    return statistics.median(found)


@pytest.mark.parametrize(("searcher", "names"), [("tpe", SPACE), ("gp", ("x", "rate"))])
def test_a_model_finds_better_settings_than_chance(
    storage: Storage, searcher: Searcher, names: Collection[str]
) -> None:
    space = {name: SPACE[name] for name in names}
    trials = 10 * len(space) if searcher == "tpe" else 10
    modelled = median_best(storage, searcher, space, trials)
    assert modelled > median_best(storage, "random", space, trials)
    assert modelled > -2.0


def test_bohb_finds_better_settings_than_chance_with_the_same_rounds(storage: Storage) -> None:
    budget = 27 * 12
    found: dict[Searcher, list[float]] = {"bohb": [], "random": []}
    for searcher, scores in found.items():
        for seed in range(3):
            folder = Storage(storage.uri(f"{searcher}-{seed}"))
            ledger = open_ledger(
                folder, SPACE, searcher=searcher, trials=120, rounds=27,
                grace=1 if searcher == "bohb" else 27, seed=seed,
            )  # fmt: skip
            for _ in steps(ledger, bowl):
                trials = list(ledger.trials.values())
                if sum(trial.done for trial in trials) >= budget:
                    break
            scores.append(max(trial.rounds[-1]["y"] for trial in trials if trial.rounds))
    assert statistics.median(found["bohb"]) > statistics.median(found["random"])


def test_a_grid_covers_each_cell_once_and_ends(storage: Storage) -> None:
    trials = run(open_ledger(storage, SPACE, searcher=Grid(points=3)), bowl)
    tried = [tuple(trial.settings.values()) for trial in trials]
    assert sorted(tried) == sorted(tuple(cell.values()) for cell in grid(SPACE, 3))


def test_a_model_does_not_try_twice_what_a_small_space_has(storage: Storage) -> None:
    space: Space = {"n": Integer(1, 4), "kind": Choice(("a", "b"))}
    ledger = open_ledger(storage, space, trials=8)
    tried = {(t.settings["n"], t.settings["kind"]) for t in run(ledger, lambda s, _: -s["n"])}
    assert len(tried) >= 7


def test_several_measurements_draw_near_their_front(storage: Storage) -> None:
    # Both are best somewhere in x from 0 to 1 with z = 0, and all of that is the front.
    goal = Goal({"y": "max", "seconds": "max"})
    space: Space = {"x": Float(-9, 10), "z": Float(-9, 9)}
    nearer = []
    for seed in range(3):
        folder = Storage(storage.uri(str(seed)))
        ledger = open_ledger(folder, space, trials=40, rounds=2, goal=goal, seed=seed)
        while (trial := ledger.next()) != "end":
            assert isinstance(trial, Trial)
            x, z = trial.settings["x"], trial.settings["z"]
            one = {"y": -(x**2) - z**2, "seconds": -((x - 1) ** 2) - z**2, "cpu_seconds": 1.0}
            ledger.take(trial.number, {"rounds": [one, one], "done_rounds": 2})
        trials = [ledger.trials[number] for number in range(40)]
        assert {trial.state for trial in trials} == {"finished"}  # nothing is stopped early
        distances = [
            max(-trial.settings["x"], trial.settings["x"] - 1, 0) + abs(trial.settings["z"])
            for trial in trials
        ]
        nearer.append(statistics.median(distances[-16:]) / statistics.median(distances[:8]))
    assert statistics.median(nearer) < 0.75


def test_a_population_copies_from_the_best_and_changes_what_it_copies(storage: Storage) -> None:
    size, every, rounds = 8, 2, 10
    space: Space = {"x": Float(0.1, 10), "n": Integer(1, 9), "kind": Choice(("good", "bad"))}
    ledger = open_ledger(storage, space, searcher=Population(size, every), rounds=rounds, seed=3)
    trials = run(ledger, lambda settings, done: done - settings["x"])
    assert len(trials) == size * rounds // every
    copied = 0
    for trial in trials[size:]:
        generation = trial.number // size
        before = trials[(generation - 1) * size : generation * size]
        ranked = sorted(before, key=lambda one: -one.rounds[-1]["y"])  # the first of equals first
        own, parent = before[trial.number % size], trials[trial.parent or 0]
        assert (trial.first, trial.done) == (generation * every, (generation + 1) * every)
        if own in ranked[-2:]:
            assert parent in ranked[:2]
            assert trial.settings != parent.settings
            assert all(value in space[name] for name, value in trial.settings.items())
            copied += 1
        else:
            assert parent is own
            assert trial.settings == own.settings
    assert copied == 2 * (rounds // every - 1)
    assert min(t.settings["x"] for t in trials) < min(t.settings["x"] for t in trials[:size])


def test_a_population_does_not_wait_for_a_member_that_failed(storage: Storage) -> None:
    ledger = open_ledger(storage, {"x": Float(1, 2)}, searcher=Population(4), rounds=2)
    for number in range(4):
        trial = ledger.next()
        assert isinstance(trial, Trial)
        measured = {"y": trial.settings["x"], "seconds": 1.0, "cpu_seconds": 1.0}
        reported = {"failed": "no"} if number == 1 else {"rounds": [measured], "done_rounds": 1}
        ledger.take(number, reported)
    later = [trial.parent for trial in run(ledger, lambda settings, _: settings["x"])[4:]]
    assert 1 not in later
    assert None not in later


def test_earlier_trials_count_like_those_of_the_search(storage: Storage) -> None:
    before = run(open_ledger(Storage(storage.uri("a")), SPACE, trials=30), bowl)
    warm = open_ledger(Storage(storage.uri("b")), SPACE, trials=10, seed=5)
    warm.earlier = before
    cold = open_ledger(Storage(storage.uri("c")), SPACE, trials=10, seed=5)
    warm_scores, cold_scores = (
        [trial.rounds[-1]["y"] for trial in run(ledger, bowl)] for ledger in (warm, cold)
    )
    assert statistics.median(warm_scores) > statistics.median(cold_scores)


def test_what_needs_an_order_refuses_several_measurements(storage: Storage) -> None:
    for searcher in ("bohb", Population()):
        with pytest.raises(RaysysError, match="one measurement"):
            open_ledger(storage, SPACE, searcher=searcher, goal=Goal({"a": "max", "b": "min"}))
    with pytest.raises(RaysysError, match="'tpo'"):
        open_ledger(storage, SPACE, searcher="tpo")  # type: ignore[arg-type]
