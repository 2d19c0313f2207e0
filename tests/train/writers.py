"""Processes that write checkpoints until they are killed; run as a program."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from raysys.storage import Storage
from raysys.train import _checkpoint
from raysys.train._checkpoint import CheckpointWriter, TrainingProgress, newest, opened
from raysys.train.strategies._strategy import TensorState

WORLD, ROUNDS, SIZE = 2, 25, 5000


class State:
    """The part of one rank, with its group and step in every number."""

    def __init__(self, rank: int, value: float) -> None:
        self.rank, self.value = rank, value

    def tensor_states(self) -> list[tuple[str, TensorState]]:
        tensors = {
            "value": torch.full((SIZE,), self.value),
            "exp_avg": torch.full((9,), self.value),
        }
        return [(f"{self.rank}-{at}", dict(tensors)) for at in range(4)]

    def extra_state(self) -> dict[str, Any]:
        return {}


def write_until_killed(storage: Storage, attempt: int, rank: int, first: int) -> None:
    _checkpoint._CHUNK_BYTES = SIZE  # several chunks to a part
    checkpoints = CheckpointWriter(storage, "run", attempt=f"{attempt:04d}", rank=rank, world=WORLD)
    step = first
    while True:
        step += 1
        state = State(rank, attempt * 1e4 + step)
        checkpoints.save(state, TrainingProgress(step, [{"epoch": 1.0}]))  # type: ignore[arg-type]


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # a forked process has no other
    storage, rng, seen = Storage(folder), random.Random(0), list[int]()
    for attempt in range(ROUNDS):
        first = seen[-1] if seen else 0
        children = []
        for rank in range(WORLD):
            child = os.fork()
            if child == 0:
                write_until_killed(storage, attempt, rank, first)
            children.append(child)
        time.sleep(rng.uniform(0.01, 0.25))
        # One worker dies a little after the first, as when a group is ended.
        for child in rng.sample(children, WORLD):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            time.sleep(rng.uniform(0, 0.01))
        name = newest(storage, "run")
        if name is None:
            assert not seen, "a complete checkpoint is lost"
            continue
        with opened(storage, "run", name) as saved:
            values = [value.unique().tolist() for value in saved.state_dict().values()]
            step = saved.progress.step
        assert len(values) == 4 * WORLD, f"parts are missing from {name}"
        # All of the group and the step in the name.
        number, _, group = name.partition("-")
        assert values == [[int(group) * 1e4 + step]] * len(values), (name, values)
        assert step == int(number)
        assert step >= first, "it went back"
        seen.append(step)
    last = newest(storage, "run")
    _checkpoint.keep_newest(storage, "run")
    print(json.dumps({"seen": seen, "last": last}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
