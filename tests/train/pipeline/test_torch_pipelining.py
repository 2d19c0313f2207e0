"""What keeps raysys.train.pipeline from using torch.distributed.pipelining.

Each test fails when a later PyTorch can do it, and says so.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import fx, nn
from torch.distributed.pipelining import Pipe, Schedule1F1B, SplitPoint, pipeline
from torch.testing._internal.distributed.fake_pg import FakeStore

from raysys.train import Batch
from tests.train.pipelined import CASES, MICRO

CPU = torch.device("cpu")


@pytest.fixture
def ranks() -> Iterator[None]:
    """The first of 3 processes, whose messages go nowhere."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    yield
    dist.destroy_process_group()


def split(name: str, *layers: str) -> tuple[nn.Module, Pipe, Batch]:
    """A case's module, and stages of a copy that begin at some layers."""
    case = CASES[name]
    batch = case.batch(np.random.default_rng(0))
    places = dict.fromkeys(layers, SplitPoint.BEGINNING)
    return case.module(), pipeline(case.module(), (), batch, split_spec=places), batch


def refusal(pipe: Pipe, stage: int, **batch: torch.Tensor) -> str:
    """What torch says when a stage takes a step; empty if it takes it."""
    schedule = Schedule1F1B(pipe.build_stage(stage, CPU), MICRO, lambda loss, _: loss)
    try:
        schedule.step(
            target=torch.zeros(MICRO),
            return_outputs=False,
            **{name: torch.cat([value] * MICRO) for name, value in batch.items()},
        )
    except Exception as error:
        return f"{error} {error.__cause__}"
    return ""


def test_tied_weights_are_copied_and_each_copy_has_a_part_of_the_gradient() -> None:
    module, pipe, batch = split("tied, clipped", "layers.layers.1")
    module(**batch).backward()
    fx.Interpreter(pipe.split_gm).run(*batch.values())[0].backward()
    tied = module.get_parameter("tokens.weight")
    copies = {
        parameter
        for stage in pipe.split_gm.children()
        for parameter in stage.parameters()
        if parameter.shape == tied.shape and parameter.grad is not None
    }
    assert len(copies) == 2, "torch.distributed.pipelining can now tie weights: use it"
    torch.testing.assert_close(sum(copy.grad for copy in copies), tied.grad)


@pytest.mark.usefixtures("ranks")
def test_the_last_stage_cannot_read_the_targets() -> None:
    _, pipe, batch = split("skipping, 3 stages", "middle.2", "middle.4")
    message = refusal(pipe, 2, y=batch["y"])
    assert "expected non-root _RecvInfo but got root arg" in message, (
        f"torch.distributed.pipelining can now pass the batch to all stages: use it; {message}"
    )


@pytest.mark.usefixtures("ranks")
def test_a_value_that_two_later_stages_use_has_no_backward_pass() -> None:
    _, pipe, batch = split("skipping, 3 stages", "middle.0", "middle.3")
    message = refusal(pipe, 0, x=batch["x"])
    assert "Backward of skip connections not supported yet" in message, (
        f"torch.distributed.pipelining can now skip stages: use it; {message}"
    )


@pytest.mark.usefixtures("ranks")
def test_no_micro_batch_is_received_while_the_one_before_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    places = dict.fromkeys(("1", "2"), SplitPoint.BEGINNING)
    stage = pipeline(layers, (torch.zeros(2, 4),), split_spec=places).build_stage(2, CPU)
    events: list[str] = []

    def record(name: str, event: str) -> None:
        method = getattr(stage, name)

        def recorded(at: int, *args: Any, **options: Any) -> Any:
            events.append(f"{event} {at}")
            return method(at, *args, **options)

        monkeypatch.setattr(stage, name, recorded)

    record("get_fwd_recv_ops", "receive")
    record("forward_one_chunk", "compute")
    Schedule1F1B(stage, MICRO, nn.functional.mse_loss).step(target=torch.zeros(2 * MICRO, 4))
    assert events == [f"{event} {at}" for at in range(MICRO) for event in ("receive", "compute")], (
        "torch.distributed.pipelining can now receive ahead: use its Schedule1F1B"
    )


@pytest.mark.usefixtures("ranks")
def test_fewer_micro_batches_than_stages_are_refused() -> None:
    _, pipe, _ = split("skipping, 3 stages", "middle.2", "middle.4")
    stage = pipe.build_stage(0, CPU)
    message = ""
    try:
        Schedule1F1B(stage, 2)
    except ValueError as error:
        message = str(error)
    assert "greater than or equal to the number of stages" in message, (
        "torch.distributed.pipelining can now take few micro-batches: use its Schedule1F1B"
    )
