"""Validation loss and speed of the two towers under each strategy, against one worker.

Same task, data, seed, global batch and steps; 2 workers must end within 2 % of 1 worker.
"""

import tempfile
from typing import get_args

from benchmarks._figures import Report, arguments
from jobs import film_etl
from jobs.two_tower import TwoTower
from raysys import cluster, train
from raysys.storage import Storage

TOLERANCE = 0.02


def main() -> None:
    options = arguments(__doc__)
    report = Report()
    cluster.connect()
    _, ratings, films, people = film_etl.etl(None, blocks=2)
    tables = {"ratings": ratings, "films": films, "people": people}
    epochs = 2 if options.quick else 5

    def validation_loss(strategy: train.StrategyName, workers: int) -> tuple[float, float]:
        settings = train.TrainSettings(strategy=strategy, workers=workers, epochs=epochs)
        with tempfile.TemporaryDirectory() as folder:
            fitted = train.fit(
                f"{strategy}-{workers}", TwoTower(), tables, settings, Storage(folder)
            )
        last = fitted.history[-1]
        return last["validation_loss"], last["epoch_s"]

    alone, alone_s = validation_loss("ddp", 1)
    report.add("1 worker: validation loss", alone, "nats")
    report.add("1 worker: epoch", alone_s, "s")
    for strategy in get_args(train.StrategyName):
        loss, seconds = validation_loss(strategy, 2)
        report.add(f"{strategy}, 2 workers: validation loss", loss, "nats")
        report.add(
            f"{strategy}, 2 workers: distance from 1 worker",
            abs(loss / alone - 1),
            "ratio",
            below=TOLERANCE,
        )
        report.add(f"{strategy}, 2 workers: epoch over 1 worker's", seconds / alone_s, "ratio")
    report.write(options.json)


if __name__ == "__main__":
    main()
