"""`python -m benchmarks.tables`: tables of the READMEs, from `benchmarks/results`."""

import json
import re
from pathlib import Path

READMES = [Path(__file__).parents[1] / name for name in ("README.md", "benchmarks/README.md")]
_RESULTS = Path(__file__).parent / "results"
_PLACE = re.compile(r"(<!-- figures: ([\w ]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
_CUT = "10 x 336,776 flights"
_AUC, _AP, _ECE = "area under the ROC curve", "average precision", "calibration error"
_OVER_EXACT = "one by one, recall >= 0.95: speed-up over exact search"
_FILTERED = "filters that keep {}: queries/s against hnswlib's Python filter, {}"

# Cells of each row, by the name of the place; `{data[polars]:.1f}` is the value of the figure
# "polars" in data.json.
TABLES: dict[str, list[list[str]]] = {
    "peers": [
        ["two cores, load generators included; compare within a row", "peer", "raysys"],
        ["read, join, aggregate, write 3.4 million rows",
         f"polars {{data[pipeline, {_CUT}: polars]:.1f}} s, "
         f"pandas {{data[pipeline, {_CUT}: pandas]:.1f}} s, "
         f"Modin {{data[pipeline, {_CUT}: Modin]:.1f}} s",
         f"{{data[pipeline, {_CUT}: raysys]:.1f}} s"],
        ["JSON requests/s through a graph of models",
         "Ray Serve 85, LitServe 1,540, MLServer 3,770, FastAPI by hand 8,800", "11,000"],
        ["nearest neighbours in batches of 100, queries/s",
         "hnswlib {index[hnswlib: in batches of 100]:,.0f}, "
         "faiss {index[faiss: in batches of 100]:,.0f}, "
         "Qdrant Edge {index[Qdrant Edge: in batches of 100]:,.0f}",
         "{index[raysys, fused: in batches of 100]:,.0f}"],
        ["a step of DDP on two workers", "torchrun {train[DDP step, torchrun]:.0f} ms",
         "{train[DDP step, raysys]:.0f} ms"],
        ["film ranking, NDCG@10", "tuned ALS 0.0689", "0.0864"],
        ["late flights, AUC",
         f"tuned HistGradientBoosting {{data[HistGradientBoosting tuned: {_AUC}]:.4f}}",
         f"{{data[raysys: {_AUC}]:.4f}}"],
    ],
    "data": [
        ["ten times the flights of 2013 (3.4 million): read, join three tables, aggregate, join "
         "back, write", "s"],
        *[[title, f"{{data[pipeline, {_CUT}: {name}]:.1f}}"]
          for title, name in (
              ("Modin on Ray", "Modin"), ("pandas", "pandas"), ("polars", "polars"),
              ("raysys, the same rows in the same order", "raysys"),
          )],
    ],
    "data costs": [
        ["", ""],
        ["out of core, an object store of a quarter of the data: largest process",
         "{data[out of core: peak memory of a process]:.0f} MB"],
        ["from a Table to its first batch in a training worker",
         "{data[hand-off, 3 million rows x 10: first batch in a worker]:.4f} s"],
        ["one request of 20 raw fields to 510 features, p50",
         "{data[featurizer, 20 fields to 510 features: one request, p50]:.0f} microseconds"],
        ["3 million rows, one in a hundred broken in ten ways: read and written with checks over "
         "without",
         "{data[quarantine: time with validation / without]:.2f} times"],
        ["broken rows missed; good rows lost",
         "{data[quarantine: bad rows missed]:.0f}; {data[quarantine: valid rows lost]:.0f}"],
    ],
    "flights": [
        ["", "AUC", "average precision", "calibration error"],
        *[[title, *(f"{{data[{name}: {measure}]:{form}}}" for measure, form in
                    ((_AUC, ".4f"), (_AP, ".4f"), (_ECE, ".3f")))]
          for title, name in (
              ("scikit-learn's HistGradientBoosting", "HistGradientBoosting"),
              ("the same, tuned", "HistGradientBoosting tuned"), ("XGBoost alone", "XGBoost alone"),
              ("network alone", "network alone"),
              ("raysys: both, blended and calibrated on October", "raysys"),
          )],
    ],
    "train": [
        ["", ""],
        ["a step of DDP over the same under `torchrun`, two workers",
         "{train[DDP step, raysys over torchrun]:.2f} times"],
        ["call to first step over Ray Train's bare TorchTrainer",
         "{train[call to first step, raysys over bare]:.2f} times"],
        ["pipeline of two stages over one process, where two processes apart give "
         "{train[pipeline: what this machine gives 2 processes over 1]:.2f}",
         "{train[pipeline of 2 stages over one process]:.2f} times"],
        ["peak memory a worker, {train[parameters]:.0f} million parameters with Adam: DDP, ZeRO-3, "
         "FSDP, pipeline",
         ", ".join(f"{{train[peak memory a worker, {name}]:.2f}}"
                   for name in ("ddp", "zero3", "fsdp", "pipeline")) + " GB"],
        ["3 million rows x 20, 100 rounds, reading counted: XGBoost with 2 threads, raysys with 2 "
         "actors",
         "{train[boosting, 3 million rows x 20, 100 rounds: XGBoost, 2 threads]:.1f}, "
         "{train[boosting: raysys, 2 actors of 1 thread]:.1f} s"],
        ["20 times `kill -9` of workers, nodes and drivers in turn: runs that ended with the "
         "undisturbed losses",
         "{train[  that ended]:.0f}"],
    ],
    "tune": [
        ["boosting, 48 cells: median share of the full grid's CPU-seconds until its best value",
         "share", "best at a fifth, AUC over the grid's"],
        *[[title, f"{{tune[search: {name}: until the grid's best ({reached} of 3 seeds)]:.2f}}",
           f"{{tune[search: {name}: best at a fifth, over the grid's]:+.4f}}"]
          for title, name, reached in (
              ("random search; not reached by 2 of 3 seeds within 0.3", "random search", 1),
              ("Optuna, TPE and its pruner; likewise", "Optuna alone, TPE and its pruner", 1),
              ("Ray Tune with OptunaSearch and ASHA; likewise",
               "Ray Tune with OptunaSearch and ASHA", 1),
              ("raysys; not reached by 1 of 3", "raysys", 2),
          )],
    ],
    "throughput": [
        ["film towers", "samples/s over the defaults'", "validation loss over the defaults'"],
        *[[title, f"{{tune[{name}: samples/s over the defaults']:.2f}}",
           f"{{tune[{name}: loss above the defaults']:+.1%}}"]
          for title, name in (
              ("largest batch", "largest batch"), ("fastest point of a grid", "grid"),
              ("raysys, `tune_throughput`", "tune_throughput"),
          )],
    ],
    "index": [
        ["", "build, s", "one by one, queries/s", "in batches of 100"],
        *[[title, f"{{index[{name}: build]:.0f}}", f"{{index[{name}: one by one]:,.0f}}",
           f"{{index[{name}: in batches of 100]:,.0f}}"]
          for title, name in (
              ("exact, NumPy", "exact, NumPy"), ("hnswlib, 2 threads", "hnswlib"),
              ("faiss HNSW, 2 threads", "faiss"), ("USearch, 2 threads", "USearch"),
              ("Qdrant Edge, 2 threads", "Qdrant Edge"),
              ("hnswlib, 2 shards in one process", "hnswlib, 2 shards"),
              ("raysys, 2 actors", "raysys, 2 actors"),
          )],
        ["raysys, a copy of 1 shard inside a serving replica",
         "loaded in {index[raysys, fused: build]:.0f}",
         "{index[raysys, fused: one by one]:,.0f}",
         "{index[raysys, fused: in batches of 100]:,.0f}"],
    ],
    "index full": [
        ["one query among 1,000,000 vectors", "times as fast as exact search on 2 threads"],
        *[[title, f"{{index_full[{_OVER_EXACT}, {name}]:.0f}}"]
          for title, name in (
              ("a copy of 1 shard inside a serving replica", "raysys, fused"),
              ("through 1 actor", "raysys, 1 actors"), ("through 2 actors", "raysys, 2 actors"),
          )],
    ],
    "filters": [
        ["queries/s over hnswlib's with a Python function, by a filter of its own each, that keeps",
         "a batch of 100", "one by one"],
        *[[share, *(f"{{index[{_FILTERED.format(share, how)}]:.1f}} times"
                    for how in ("a batch of 100", "one by one"))]
          for share in ("50.0%", "5.0%", "0.5%")],
    ],
}  # fmt: skip


def render(text: str) -> str:
    """A README with its tables made from the results.

    Raises:
        KeyError: A figure is missing: run its benchmark with `--json`.
    """
    results = {}
    for path in _RESULTS.glob("*.json"):
        figures = json.loads(path.read_text())["figures"]
        results[path.stem] = {each["name"]: each.get("value") for each in figures}

    def table(place: re.Match[str]) -> str:
        first, *rows = [[cell.format_map(results) for cell in row] for row in TABLES[place[2]]]
        lines = ["| " + " | ".join(row) + " |" for row in (first, ["---"] * len(first), *rows)]
        return place[1] + "\n".join(lines) + place[3]

    return _PLACE.sub(table, text)


if __name__ == "__main__":
    for path in READMES:
        path.write_text(render(path.read_text()))
