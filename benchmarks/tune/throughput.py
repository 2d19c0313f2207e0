"""Training speed of the recommender's tower: defaults, `tune_throughput` and its peers.

The peers have the same worker processes, the same space and the same budget: a plain grid that
measures each point for an equal time, and the largest batch that still brings samples per second,
doubled from the defaults', as a batch-size finder does. Their recommendations and that of
`tune_throughput` are then trained by `train.fit` in turns with the defaults.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

from benchmarks._figures import Report, run
from jobs import film_etl
from jobs.two_tower import TwoTower
from raysys import cluster, train, tune
from raysys.console import say
from raysys.errors import TrainError
from raysys.storage import Storage

if TYPE_CHECKING:
    from raysys.data import Table

_STEPS = 20  # of a point of the grid
_MIN_NOISE = 1e-3


def measure(report: Report, quick: bool) -> None:
    """Add the figures of all of them."""
    cluster.connect()
    _, ratings, films, _ = film_etl.etl(None, blocks=2)
    tables = {"ratings": ratings, "films": films}
    defaults = train.TrainSettings()
    budget_s = 60.0 if quick else 180.0
    with tempfile.TemporaryDirectory() as folder:
        result = tune.tune_throughput(
            "towers", TwoTower(), tables, defaults, Storage(folder),
            metric="validation_loss", timeout_s=budget_s,
        )  # fmt: skip
    say(str(result))
    report.add("tune_throughput: search", result.duration_s, "s")
    report.add("tune_throughput: configurations measured", len(result.trials), "number")
    ways = {"defaults": defaults, "tune_throughput": result.best_settings}
    if not quick:
        ways |= _peers(tables, defaults, budget_s)
    runs = _trained(tables, ways, seeds=1 if quick else 3)
    base = runs["defaults"]
    for name, measured in runs.items():
        for key, unit in (
            ("samples_per_s", "1/s"), ("validation_loss", "nats"), ("ndcg_at_10", "NDCG"),
        ):  # fmt: skip
            report.add(f"{name}: {key}", statistics.fmean(run[key] for run in measured), unit)
        if name == "defaults":
            continue
        ours = name == "tune_throughput"
        # Run by run, as they were trained in turns.
        ratio = statistics.median(
            run["samples_per_s"] / default["samples_per_s"]
            for run, default in zip(measured, base, strict=True)
        )
        report.add(
            f"{name}: samples/s over the defaults'", ratio, "ratio", above=1.5 if ours else None
        )
        losses = [[run["validation_loss"] for run in group] for group in (measured, base)]
        increase = statistics.fmean(losses[0]) / statistics.fmean(losses[1]) - 1
        noise = _noise(*losses)
        report.add(
            f"{name}: loss above the defaults'", increase, "ratio", below=noise if ours else None
        )


def _noise(losses: list[float], base: list[float]) -> float:
    """Relative noise of the loss: the 95 % bound of the mean difference of three runs."""
    if len(base) < 2:
        return 5 * _MIN_NOISE  # the spread between seeds, seen in longer runs
    differences = [own / default - 1 for own, default in zip(losses, base, strict=True)]
    return max(_MIN_NOISE, 2.92 * statistics.stdev(differences) / len(differences) ** 0.5)


def _trained(
    tables: dict[str, Table], ways: dict[str, train.TrainSettings], seeds: int
) -> dict[str, list[dict[str, float]]]:
    """The last epoch of whole runs, in turns, with the epochs' median speed."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    finished: dict[tuple[str, int], dict[str, float]] = {}
    for seed in range(seeds):
        for name, way in ways.items():
            settings = way.model_copy(update={"seed": seed})
            key = (way.model_dump_json(), seed)
            if key not in finished:
                with tempfile.TemporaryDirectory() as folder:
                    fitted = train.fit(
                        f"{name}-{seed}", TwoTower(), tables, settings, Storage(folder)
                    )
                # The first epoch includes one-time work.
                speeds = [epoch["samples_per_s"] for epoch in fitted.history[1:]]
                finished[key] = fitted.history[-1] | {"samples_per_s": statistics.median(speeds)}
            runs[name].append(finished[key])
    return runs


def _peers(
    tables: dict[str, Table], defaults: train.TrainSettings, budget_s: float
) -> dict[str, train.TrainSettings]:
    """The recommendation of a grid, and the largest batch."""
    with train.TrialSession(TwoTower(), tables, defaults) as session:
        started = time.monotonic()
        grid = _grid(session, defaults, started + budget_s)
        largest = _largest_batch(session, defaults)
    return {"grid": grid, "largest batch": largest}


def _grid(
    session: train.TrialSession, defaults: train.TrainSettings, ends: float
) -> train.TrainSettings:
    """The fastest point of the product of all values, within the time.

    It measures speed alone: a loss at each point would take hours.
    """
    values: dict[str, list[Any]] = {
        "batch_size": [512, 1024, 2048, 4096], "precision": ["fp32", "bf16"],
        "num_workers": [2, 1], "prefetch_batches": [0, 2], "gradient_accumulation_steps": [1, 2],
        "gradient_compression": ["none", "fp16"],
    }  # fmt: skip
    best, fastest = defaults, 0.0
    for point in itertools.product(*values.values()):
        if time.monotonic() > ends:
            break
        changed = dict(zip(values, point, strict=True)) | {"base_batch_size": 512}
        # All cores, in threads where there is one worker.
        changed["threads_per_worker"] = 1 if changed["num_workers"] == 2 else 2
        settings = defaults.model_copy(update=changed)
        speed = _speed(session, settings)
        if speed > fastest:
            best, fastest = settings, speed
    return best


def _largest_batch(
    session: train.TrialSession, defaults: train.TrainSettings
) -> train.TrainSettings:
    """The batch size, doubled while it fits: on CPUs, up to the number of examples."""
    best = defaults
    while best.batch_size * 2 <= session.machine.examples:
        larger = best.model_copy(update={"batch_size": best.batch_size * 2, "base_batch_size": 512})
        if _speed(session, larger) == 0.0:
            break
        best = larger
    return best


def _speed(session: train.TrialSession, settings: train.TrainSettings) -> float:
    try:
        opened = session.prepare(settings)
        measured = session.run_steps(opened, _STEPS)
        session.close(opened)
    except TrainError:
        return 0.0
    return settings.batch_size / measured.step_s


if __name__ == "__main__":
    run(__doc__, measure)
