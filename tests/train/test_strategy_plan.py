"""The planner counts the memory of each strategy, and prefers little traffic."""

import re

import pytest

from raysys.data import Table
from raysys.errors import ResourceError
from raysys.train import StrategyName, TrainSettings, plan
from raysys.train._strategy_plan import ModuleSummary, choose, estimate
from tests.train.tasks import Regression, rows

GIB = 1 << 30


class Wide(Regression):
    """50 million parameters: 0.2 GB, four times that with gradients and Adam's state."""

    def build(self):  # type: ignore[no-untyped-def]
        import torch

        module = super().build()
        layers = [torch.nn.Linear(2500, 2000, bias=False) for _ in range(10)]
        module.wide = torch.nn.ModuleList(layers)
        return module


@pytest.mark.usefixtures("ray_cluster")
def test_the_cheapest_strategy_that_fits_is_chosen() -> None:
    tables = {"rows": Table.load(rows)}
    settings = TrainSettings(num_workers=4, batch_size=64)
    roomy = plan(Wide(), tables, settings, memory_limit_bytes=100 * GIB)
    assert roomy.settings.strategy == "ddp"
    assert roomy.module.parameters == 50_000_097
    state = 4 * 4 * roomy.module.parameters  # values, gradients and Adam's two moments
    process = roomy.module.process_bytes
    needed = {e.strategy: e.memory_bytes - process for e in roomy.estimates}
    assert needed["ddp"] == pytest.approx(1.1 * state, rel=0.01)
    assert needed["zero1"] < needed["ddp"]
    assert needed["zero2"] <= needed["zero1"]
    assert 1 / 4 < needed["zero3"] / needed["ddp"] < 0.75
    assert needed["pipeline"] == pytest.approx(1.1 * state / 2, rel=0.01)
    # With little room the whole state no longer fits on every worker.
    tight = process + needed["zero3"] + (64 << 20)
    chosen = choose(roomy.module, settings, tight, gpu=False)
    assert chosen.settings.strategy in ("fsdp", "zero3")
    assert re.search("ddp .* no ", str(chosen))
    assert repr(chosen).startswith(f"StrategyPlan('{chosen.settings.strategy}', fitting: ")
    with pytest.raises(ResourceError, match=r"even .* needs .* Use more workers"):
        choose(roomy.module, settings, 1 << 20, gpu=False)
    # A pipeline of few micro-batches waits, one of many does not, and sends least.
    many = settings.model_copy(update={"gradient_accumulation_steps": 16})
    assert choose(roomy.module, many, 100 * GIB, gpu=False).settings.strategy == "pipeline"


def test_strategies_that_the_settings_rule_out_are_left_out() -> None:
    module = ModuleSummary(10**4, 10**3, activation_bytes=0, process_bytes=0)
    settings = TrainSettings(
        num_workers=4, min_workers=2, batch_size=64, strategy="fsdp", cpu_offload=True,
        optimizer="lamb", gradient_accumulation_steps=16,
    )  # fmt: skip
    chosen = choose(module, settings, 100 * GIB, gpu=False)
    assert {e.strategy for e in chosen.estimates} == {"ddp", "fsdp"}
    assert (chosen.settings.strategy, chosen.settings.cpu_offload) == ("ddp", False)


@pytest.mark.parametrize(
    ("strategy", "bytes_a_parameter"), [("zero1", 8), ("zero2", 4), ("zero3", 0), ("fsdp", 0)]
)
def test_offload_leaves_on_a_gpu_what_is_computed_with(
    strategy: StrategyName, bytes_a_parameter: int
) -> None:
    module = ModuleSummary(10**8, largest_layer=10**4, activation_bytes=0, process_bytes=0)
    needs = estimate(strategy, module, TrainSettings(num_workers=4), GIB, offloads=True)
    layers = 2 * 4 * module.largest_layer
    assert needs.memory_bytes == pytest.approx(1.1 * 10**8 * bytes_a_parameter, abs=1.1 * layers)
