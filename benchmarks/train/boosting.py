"""Boosting on two actors against XGBoost with the same two threads, from the same Parquet file.

A call's time is from the file to the trained booster. The cluster is connected before and both
libraries are imported in the calling process; that actors start and import theirs is counted.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._figures import Report, run
from raysys import cluster
from raysys.data import Table, read
from raysys.evaluate import binary_measures
from raysys.train import BoostSettings, boost

_COLUMNS, _LABEL = 20, "late"


def measure(report: Report, quick: bool) -> None:
    """Grow 100 trees of 3 million rows both ways, one after the other."""
    import xgboost  # noqa: F401  as a program does at its beginning
    import xgboost_ray  # noqa: F401

    rows, rounds = (200_000, 30) if quick else (3_000_000, 100)
    settings = BoostSettings(objective="binary:logistic", num_boost_round=rounds, num_actors=2)
    cluster.connect()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(_rows(0, rows), path, row_group_size=250_000)
        unseen = _rows(1, rows // 10)
        plain_s, plain = _plain(path, settings)
        started = time.perf_counter()
        ours = boost(read(path), settings, label=_LABEL)
        ours_s = time.perf_counter() - started
        _parts(report, path, settings)
    size = f"boosting, {rows / 1e6:g} million rows x {_COLUMNS}, {rounds} rounds"
    report.add(f"{size}: XGBoost, 2 threads", plain_s, "s")
    report.add("boosting: raysys, 2 actors of 1 thread", ours_s, "s")
    # A tenth of the rows takes less than starting the actors, so the bar is that of the whole.
    report.add("boosting: raysys / XGBoost", ours_s / plain_s, "", below=None if quick else 1.3)
    late = unseen[_LABEL].to_numpy()
    theirs = binary_measures(late, plain.inplace_predict(_matrix(unseen)))
    found = binary_measures(late, ours.predict_batch(unseen)["probability_1"])
    report.add("boosting: AUC of XGBoost", theirs["auc"], "")
    report.add("boosting: AUC apart", abs(found["auc"] - theirs["auc"]), "", below=0.001)
    started = time.perf_counter()
    predicted = len(ours.predict(Table.from_arrow(unseen, rows_per_block=100_000)))
    seconds = time.perf_counter() - started
    report.add("boosting: rows predicted in blocks", predicted / seconds, "rows/s")


def _plain(path: Path, settings: BoostSettings) -> tuple[float, Any]:
    """What one writes without a cluster; QuantileDMatrix is the faster of the two matrices."""
    import xgboost

    started = time.perf_counter()
    rows = pq.read_table(path)
    data = xgboost.QuantileDMatrix(
        _matrix(rows), rows[_LABEL].to_numpy(), max_bin=settings.max_bin, nthread=2
    )
    trees = xgboost.train(settings.params() | {"nthread": 2}, data, settings.num_boost_round)
    return time.perf_counter() - started, trees


def _parts(report: Report, path: Path, settings: BoostSettings) -> None:
    """The time without growing: a run of one round, and of one round on rows that are there."""
    once = settings.model_copy(update={"num_boost_round": 1})
    started = time.perf_counter()
    table = read(path).materialize()
    report.add("boosting: reading into blocks", time.perf_counter() - started, "s")
    started = time.perf_counter()
    boost(table, once, label=_LABEL)
    report.add("boosting: actors, bins and one round", time.perf_counter() - started, "s")


def _matrix(rows: pa.Table) -> np.ndarray:
    names = [name for name in rows.column_names if name != _LABEL]
    return np.stack([rows[name].to_numpy() for name in names], axis=1)


def _rows(seed: int, rows: int) -> pa.Table:
    """Waves and products of some columns, beside others that say nothing; float32."""
    rng = np.random.default_rng(seed)
    columns = {f"x{at}": rng.normal(size=rows).astype(np.float32) for at in range(_COLUMNS)}
    score = 0.5 * columns["x0"] * columns["x1"]
    for at in range(10):
        score += 0.4 * np.sin((at % 3 + 1) * columns[f"x{at}"])
    late = rng.random(rows) < 1 / (1 + np.exp(-score))
    return pa.table({**columns, _LABEL: late.astype(np.int8)})


if __name__ == "__main__":
    run(__doc__, measure)
