"""Step time of DDP against `torchrun`, and the time to the first step against a bare TorchTrainer.

Alternating runs, medians of their ratios.
"""

import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from benchmarks._figures import Report, run
from benchmarks.train import peers
from benchmarks.train.tasks import Clocked, LanguageTask, text, times
from raysys import cluster, train
from raysys.data import Table
from raysys.storage import Storage

_WARM = 20  # steps that are not counted


def measure(report: Report, quick: bool) -> None:
    """Add both figures."""
    cluster.connect()
    rows = text()
    table = Table.load(lambda: text()).materialize()
    bare = {"text": ray.put(rows)}
    steps = 120 if quick else 300
    settings = train.TrainSettings(
        batch_size=32, max_steps=steps, epochs=100, evaluate=False, checkpoint_steps=10_000
    )
    task = LanguageTask()
    ratios, firsts, seconds = [], [], []
    for _ in range(2 if quick else 5):
        ours = _ours(task, table, settings)
        torchrun = _torchrun(task, rows, settings)
        first = _bare(task, bare, settings.model_copy(update={"max_steps": 5}))
        ratios.append(ours[1] / torchrun)
        firsts.append(ours[0] / first)
        seconds.append((ours[0], first, ours[1], torchrun))
    middle = np.median(seconds, axis=0)
    report.add("DDP step, torchrun", middle[3] * 1e3, "ms")
    report.add("DDP step, raysys", middle[2] * 1e3, "ms")
    report.add("DDP step, raysys over torchrun", statistics.median(ratios), "ratio", below=1.03)
    report.add("call to first step, bare TorchTrainer", middle[1], "s")
    report.add("call to first step, raysys", middle[0], "s")
    report.add(
        "call to first step, raysys over bare", statistics.median(firsts), "ratio", below=1.1
    )


def _ours(
    task: train.TrainingTask, table: Table, settings: train.TrainSettings
) -> tuple[float, float]:
    """Seconds from the call to the end of the first step, and of a step."""
    with tempfile.TemporaryDirectory() as folder:
        clocked = Clocked(task, Path(folder))
        called = time.time()
        train.fit("speed", clocked, {"text": table}, settings, Storage(folder))
        return _first(called, Path(folder)), _step(Path(folder))


def _torchrun(task: train.TrainingTask, rows: pa.Table, settings: train.TrainSettings) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "what.pickle")
        file.write_bytes(pickle.dumps((Clocked(task, Path(folder)), {"text": rows}, settings)))
        command = [
            str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node=2", "--standalone",
            "-m", "benchmarks.train.peers", str(file),
        ]  # fmt: skip
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return _step(Path(folder))


def _bare(
    task: train.TrainingTask, tables: dict[str, ray.ObjectRef], settings: train.TrainSettings
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        called = time.time()
        peers.bare_trainer(Clocked(task, Path(folder)), tables, settings, Path(folder))
        return _first(called, Path(folder))


def _first(called: float, folder: Path) -> float:
    # The second batch is asked for when the first step has been taken.
    return max(float(at[1]) for at in times(folder)) - called


def _step(folder: Path) -> float:
    return statistics.median(float(np.median(np.diff(at[_WARM:]))) for at in times(folder))


if __name__ == "__main__":
    run(__doc__, measure)
