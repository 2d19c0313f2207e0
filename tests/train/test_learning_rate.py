"""Learning rates against PyTorch's schedulers and by hand."""

import pytest
import torch

from raysys.train import TrainSettings
from raysys.train._learning_rate import learning_rate_at, scaled_learning_rate


def scheduled(kind: str, warmup: float) -> TrainSettings:
    return TrainSettings.model_validate(
        {"learning_rate": 0.3, "warmup_ratio": warmup, "lr_scheduler_type": kind}
    )


def scaled(learning_rate: float, batch_size: int, base: int | None, optimizer: str) -> float:
    return scaled_learning_rate(
        TrainSettings.model_validate({
            "learning_rate": learning_rate, "batch_size": batch_size, "base_batch_size": base,
            "optimizer": optimizer,
        })
    )  # fmt: skip


def rates(kind: str, *, steps: int, warmup: float) -> list[float]:
    settings = scheduled(kind, warmup)
    return [learning_rate_at(step, steps, settings) for step in range(steps)]


def pytorch_rates(scheduler: type, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = scheduler(optimizer, **options)
    result = []
    for _ in range(steps):
        result.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return result


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "rising"), [(0.1, 4), (0.34, 14), (0.0, 1)])
def test_the_rate_rises_linearly_and_falls_as_in_pytorch(
    kind: str, warmup: float, rising: int
) -> None:
    actual = rates(kind, steps=40, warmup=warmup)
    assert actual[:rising] == pytest.approx([0.3 * (at + 1) / rising for at in range(rising)])
    falling = {
        "cosine": lambda n: pytorch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, n, T_max=n),
        "linear": lambda n: pytorch_rates(
            torch.optim.lr_scheduler.LinearLR, n, start_factor=1.0, end_factor=0.0, total_iters=n
        ),
        "constant": lambda n: [0.3] * n,
    }[kind](40 - rising)
    assert actual[rising:] == pytest.approx(falling)


@pytest.mark.parametrize(("kind", "end"), [("cosine", 0.0), ("linear", 0.0), ("constant", 0.3)])
def test_the_rate_is_constant_after_the_last_step(kind: str, end: float) -> None:
    for step in (40, 41, 1000):
        assert learning_rate_at(step, 40, scheduled(kind, 0.1)) == pytest.approx(end)


def test_a_run_of_one_step_takes_it_at_the_peak() -> None:
    assert rates("cosine", steps=1, warmup=0.1) == [0.3]


def test_the_rate_is_scaled_with_the_batch_by_the_optimizers_rule() -> None:
    # Goyal et al., table 1: 0.1 for 256 images is 3.2 for 8192.
    assert scaled(0.1, 8192, 256, "sgd") == pytest.approx(3.2)
    assert scaled(0.1, 8192, 256, "lars") == pytest.approx(3.2)
    # You et al. (2020), table 4: 5e-4 / 8 for 512 sequences is 5e-4 / 1 for 32768.
    for optimizer in ("adamw", "lamb"):
        rate = scaled(5 / (2**3 * 1e3), 32768, 512, optimizer)
        assert rate == pytest.approx(5 / (2**0 * 1e3))
    assert scaled(0.1, 64, 256, "sgd") == pytest.approx(0.025)
    assert scaled(0.1, 8192, None, "sgd") == 0.1
