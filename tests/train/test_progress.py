"""The record of a training that ends early."""

import uuid

import pytest

from raysys.storage import Storage
from raysys.tracking import Runs
from raysys.train import TrainSettings
from raysys.train._progress import reported_progress
from raysys.train._run_state import RunState


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (OSError, "FAILED")],
)
def test_an_interrupted_training_was_killed(
    error: type[BaseException], status: str, storage: Storage
) -> None:
    name = uuid.uuid4().hex
    state = RunState(storage, name)

    def train() -> None:
        with reported_progress(state, {}, TrainSettings(), 0):
            point = {"step": 1, "loss": 2.0}
            state.write("progress", {"history": [], "points": [point], "step": 1})
            raise error

    with pytest.raises(error):
        train()
    assert Runs(storage).find(name).status == status
