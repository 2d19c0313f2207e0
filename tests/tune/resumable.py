"""A search whose trials say which rounds they run, to be killed and taken up again."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysys import cluster
from raysys.data import Table
from raysys.storage import Storage
from raysys.tune import Float, Found, Report, search

ROUNDS = 4


def objective(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
    log = Path(tables["where"]["log"][0].as_py())
    folder = report.resume()
    total = float((folder / "total").read_text()) if folder else 0.0
    while report.done < ROUNDS:
        with log.open("a") as file:
            file.write(f"{settings['x']!r} {report.done + 1}\n")
        time.sleep(0.2)
        total += settings["x"]

        def save(folder: Path, total: float = total) -> None:
            (folder / "total").write_text(repr(total))

        report({"total": total}, save=save)


def run(storage: Storage, log: Path) -> Found:
    table = Table.load(lambda: pa.table({"log": [str(log)]}))
    return search(
        "sums", objective, {"where": table}, {"x": Float(0, 1)}, storage,
        metric="total", trials=5, rounds=ROUNDS, grace_rounds=3, cpus_per_trial=1,
    )  # fmt: skip


if __name__ == "__main__":
    # Through the module's own name, so that workers import what is pickled here.
    from tests.tune import resumable

    cluster.connect()
    resumable.run(Storage(sys.argv[1]), Path(sys.argv[2]))
