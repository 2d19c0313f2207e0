"""Batches prepared ahead in a thread are those of a run without one, and so are its errors."""

import numpy as np
import pytest
import torch

from raysys.errors import TrainError
from raysys.train import Batch, TrainSettings
from raysys.train._loader import micro_batches
from tests.train.tasks import Regression, rows


class Failing(Regression):
    """Fails at its tenth batch."""

    calls = 0

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        self.calls += 1
        if self.calls == 10:
            raise ZeroDivisionError
        return super().batch(rows, rng)


def batches(task: Regression, prefetch: int, steps: range) -> list[torch.Tensor]:
    settings = TrainSettings(
        batch_size=400, num_workers=1, gradient_accumulation_steps=2, prefetch_batches=prefetch
    )
    examples = task.prepare({"rows": rows()})
    iterator = micro_batches(task, settings, examples, data_shard=(0, 1), steps=steps, device="cpu")
    return [part.batch["y"] for micro in iterator for part in micro]


def test_prefetched_batches_are_the_same_in_the_same_order() -> None:
    plain = batches(Regression(), 0, range(2, 9))
    assert len(plain) == 14
    for prefetch in (1, 3, 20):
        ahead = batches(Regression(), prefetch, range(2, 9))
        assert all(torch.equal(a, b) for a, b in zip(plain, ahead, strict=True))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_the_task_ends_the_batches(prefetch: int) -> None:
    with pytest.raises(TrainError, match=r"Failing.batch failed: ZeroDivisionError"):
        batches(Failing(), prefetch, range(1 << 40))
