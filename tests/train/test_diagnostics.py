"""Diagnostic trainings, and the step and layer in the error of a run that diverges."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from raysys.data import Table
from raysys.errors import TrainError
from raysys.train import (
    Batch,
    TrainSettings,
    learning_curve,
    overfit_one_batch,
    train_in_process,
)
from tests.train.tasks import Regression, rows


def settings(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate(
        {"epochs": 2, "batch_size": 100, "learning_rate": 0.02, "num_workers": 1, **changes}
    )


class Cut(Regression):
    """Its gradients are zero, so it learns nothing."""

    def build(self) -> nn.Module:
        module = super().build()
        for parameter in module.parameters():
            parameter.register_hook(torch.zeros_like)
        return module


class Breaking(nn.Module):
    """Divides by zero for large outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        self.scale = Scale()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((self.scale(self.layers(x))[:, 0] - y) ** 2).mean()


class Scale(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().amax() < 1e6).float()


class Broken(Regression):
    """From its fifth batch on the inputs are enormous."""

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self.count = 0
        return super().prepare(tables)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        module = Breaking()
        nn.init.constant_(module.layers[2].weight, 1e6)
        nn.init.constant_(module.layers[2].bias, -1e6)
        module.layers[1] = nn.Identity()
        return module

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        self.count += 1
        batch = super().batch(rows, rng)
        batch["x"] = batch["x"] * (1e9 if self.count >= 5 else 1e-9)
        return batch


@pytest.mark.usefixtures("ray_cluster")
def test_a_module_without_gradients_fails_to_overfit_one_batch() -> None:
    tables = {"rows": Table.load(rows)}
    intact = overfit_one_batch(Regression(), tables, settings(), steps=300)
    assert intact.passed
    assert intact.losses[-1] < 0.1 * intact.losses[0]
    cut = overfit_one_batch(Cut(), tables, settings(), steps=20)
    assert not cut.passed
    assert cut.losses[-1] == cut.losses[0]
    assert "does not learn one batch" in str(cut)


@pytest.mark.usefixtures("ray_cluster")
def test_the_learning_curve_falls_and_ends_at_a_full_training() -> None:
    table = Table.load(rows)
    points = learning_curve(Regression(), {"rows": table}, settings(), train_sizes=(1.0, 0.02, 0.2))
    assert [point.examples for point in points] == [30, 300, 1500]
    losses = [point.metrics["loss"] for point in points]
    assert losses[0] > losses[-1]
    # The same steps over the same examples in another order.
    whole: list[dict[str, float]] = []
    train_in_process(Regression(), {"rows": rows()}, settings(), lambda e, _: whole.append(e))
    assert losses[-1] == pytest.approx(whole[-1]["loss"], rel=0.3)


def test_a_non_finite_loss_stops_at_its_step_and_names_the_layer() -> None:
    seen: list[object] = []
    with pytest.raises(TrainError, match=r"step 5: the loss is inf.*of layer scale") as caught:
        train_in_process(
            Broken(), {"rows": rows()}, settings(), lambda epoch, _: seen.append(epoch)
        )
    assert (caught.value.step, caught.value.layer) == (5, "scale")
    assert seen == []


class Bursting(Regression):
    """Its thirteenth batch is a thousand times as large as the others."""

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self.count = 0
        return super().prepare(tables)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        self.count += 1
        batch = super().batch(rows, rng)
        return batch if self.count != 13 else {k: v * 1000 for k, v in batch.items()}


def test_an_exploding_gradient_stops_at_its_step_and_names_the_largest_one() -> None:
    changed_settings = settings(max_grad_norm_ratio=50.0)
    with pytest.raises(TrainError, match=r"norm of the gradient is .* more than") as caught:
        train_in_process(Bursting(), {"rows": rows()}, changed_settings, lambda epoch, _: None)
    assert caught.value.step == 13
    assert caught.value.layer in {"layers.0.weight", "layers.2.weight"}
    # Without the setting the run ends normally.
    train_in_process(Bursting(), {"rows": rows()}, settings(), lambda epoch, _: None)


def test_parameters_depend_on_the_seed_alone() -> None:
    def trained(seed: int) -> torch.Tensor:
        states: list[dict[str, torch.Tensor]] = []
        changed_settings = settings(seed=seed, deterministic=True)
        train_in_process(
            Regression(), {"rows": rows()}, changed_settings,
            lambda _, parameters: states.append({k: v.clone() for k, v in parameters.items()}),
        )  # fmt: skip
        return torch.cat([value.flatten() for value in states[-1].values()])

    first = trained(1)
    assert torch.equal(first, trained(1))
    assert not torch.equal(first, trained(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "pipeline", "num_workers": 3},
            "num_workers=3 does not divide into pipelines of 2 stages",
        ),
        (
            {"strategy": "pipeline", "num_workers": 4, "gradient_accumulation_steps": 3},
            "multiple of gradient_accumulation_steps",
        ),
        ({"strategy": "zero2", "optimizer": "lamb"}, "lamb needs each layer's norm"),
        ({"strategy": "fsdp", "gradient_compression": "fp16"}, "works under ddp, not fsdp"),
        ({"num_workers": 2, "min_workers": 3}, "min_workers=3 is more than num_workers=2"),
        ({"num_workers": 101}, "batch_size=100 is less than num_workers=101"),
        ({"strategie": "ddp"}, "strategie"),
        ({"cpu_offload": True}, "under fsdp or ZeRO, not ddp"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)
