"""Blocks of modules; recomputing them changes the memory and nothing else."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from jobs.flight_mlp import DelayNetwork
from jobs.two_tower import Towers
from raysys.train.strategies._layer_blocks import (
    activation_bytes,
    apply_activation_checkpointing,
    blocks,
)


class Encoder(nn.Module):
    """A mean squared error over a transformer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.head(self.encoder(x)) ** 2).mean()


class Nest(nn.Module):
    """Lists in lists, a layer in two lists, and one that shares a parameter with the rest."""

    def __init__(self) -> None:
        super().__init__()
        twice, tied = nn.Linear(2, 2), nn.Linear(2, 2)
        self.stages = nn.ModuleList([
            nn.ModuleList([nn.Linear(2, 2), twice]),
            nn.ModuleDict({"first": twice, "last": nn.Sequential(nn.Linear(2, 2), nn.ReLU())}),
            nn.ReLU(),
            tied,
        ])  # fmt: skip
        self.named = nn.ModuleDict({"deep": nn.Sequential(nn.Linear(2, 2), nn.Tanh())})
        self.head = nn.Linear(2, 2)
        self.head.weight = tied.weight


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def names(module: nn.Module) -> list[str]:
    pairs = blocks(module)
    assert all(module.get_submodule(name) is block for name, block in pairs)
    return [name for name, _ in pairs]


def test_blocks_are_the_repeated_layers() -> None:
    assert names(encoder()) == ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"]
    mlp = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    assert names(mlp) == ["0", "2"]
    towers = Towers(np.ones((4, 2), np.float32), np.zeros(4, np.int64), 8, 0.1, 0.1)
    assert names(towers) == ["hidden.0", "hidden.2"]
    network = DelayNetwork(120, (3, 4, 5))
    assert names(network) == [
        "embeddings.0", "embeddings.1", "embeddings.2", "layers.0", "layers.3", "layers.6",
    ]  # fmt: skip


def test_without_lists_there_are_no_blocks() -> None:
    assert names(nn.Linear(2, 2)) == []
    assert names(nn.TransformerEncoderLayer(16, 2, 64)) == []
    assert names(nn.Sequential(nn.ReLU())) == []


def test_a_block_is_called_listed_once_and_owns_its_parameters() -> None:
    assert names(Nest()) == ["stages.0.0", "stages.0.1", "stages.1.last", "named.deep.0"]


def gradients(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    module(x=x).backward()
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: value for name, value in grads.items() if value is not None}


@pytest.mark.parametrize("fresh", [encoder, lambda: copy.deepcopy(_checkpointed())])
def test_recomputed_gradients_are_the_plain_ones(fresh: object) -> None:
    x = torch.randn(4, 8, 16)
    plain, again = encoder(), _checkpointed()
    assert again.state_dict().keys() == plain.state_dict().keys()
    expected, actual = gradients(plain, x), gradients(again, x)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    assert torch.equal(plain.eval()(x), again.eval()(x))


def _checkpointed() -> Encoder:
    module = encoder()
    apply_activation_checkpointing(module)
    return module


def test_a_copy_recomputes_with_its_own_parameters() -> None:
    x = torch.randn(4, 8, 16)
    copied = copy.deepcopy(_checkpointed())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.1)
    plain = encoder()
    plain.load_state_dict(copied.state_dict())
    actual = gradients(copied, x)
    assert all(torch.equal(actual[name], value) for name, value in gradients(plain, x).items())


def test_blocks_are_computed_twice_and_their_hooks_run_once() -> None:
    module = _checkpointed()
    seen = {"layer": 0, "within": 0, "backward": 0}

    def count(key: str) -> object:
        def hook(*_: object) -> None:
            seen[key] += 1

        return hook

    for _, layer in blocks(module):
        layer.register_forward_hook(count("layer"))
        layer.register_full_backward_hook(count("backward"))
        layer.linear1.register_forward_hook(count("within"))
    module(torch.randn(4, 8, 16, requires_grad=True)).backward()
    assert seen == {"layer": 3, "backward": 3, "within": 6}


class Squares(nn.Module):
    """Keeps its input, of 12 values, and the exponentials, of 12; the view adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(12))
        self.register_buffer("shift", torch.ones(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = (x * self.weight).exp() * self.shift
        return product.sum() + (x.view(3, 4) * self.weight.view(3, 4)).sum()


def test_activation_bytes_count_storages_once_and_without_parameters() -> None:
    assert activation_bytes(Squares(), {"x": torch.ones(12)}) == 2 * 12 * 4
    assert activation_bytes(nn.Linear(3, 5), {"input": torch.ones(7, 3)}) == 7 * 3 * 4
    with torch.no_grad():
        assert activation_bytes(Squares(), {"x": torch.ones(12)}) == 0


def test_recomputed_blocks_keep_their_inputs_alone() -> None:
    x = torch.randn(32, 8, 16)
    plain, again = (activation_bytes(module, {"x": x}) for module in (encoder(), _checkpointed()))
    # Three layers' inputs and the head's, and the output whose square is the loss.
    assert again == pytest.approx(4 * x.nbytes + x.nbytes / 16, rel=0.01)
    assert again < 0.1 * plain
