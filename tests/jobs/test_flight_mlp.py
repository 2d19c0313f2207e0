"""The network, on synthetic flights."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.flight_features import CODES, NUMBERS
from jobs.flight_mlp import THRESHOLDS, DelayNetwork, DelayTask, build_network, columns_of
from raysys.train import EpochMetrics, StateDict, TrainSettings, train_in_process


def synthetic(rows: int, seed: int) -> pa.Table:
    """Ranks, of which the first determines the delay, two scaled numbers, and codes."""
    rng = np.random.default_rng(seed)
    ranks = rng.integers(0, 100, (rows, len(NUMBERS))).astype(np.float32)
    ranks[rng.random(rows) < 0.3, 1] = -1
    carrier = rng.integers(0, 3, rows)
    delay = (ranks[:, 0] - 50) + 20 * (carrier == 2) + 40 * (ranks[:, 1] < 0) - 20
    columns = {f"{name}_bin": ranks[:, at] for at, name in enumerate(NUMBERS)}
    columns |= {name: rng.normal(size=rows).astype(np.float32) for name in NUMBERS[:2]}
    columns |= dict(zip(CODES, (carrier, rng.integers(0, 2, rows), np.zeros(rows)), strict=True))
    delay = delay + rng.normal(0, 10, rows)
    columns |= {"arr_delay": delay, "late": (delay > 15).astype(np.int8)}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


@pytest.fixture(scope="module")
def trained() -> tuple[list[EpochMetrics], StateDict]:
    history: list[EpochMetrics] = []
    last: StateDict = {}

    def keep(measured: EpochMetrics, parameters: StateDict) -> None:
        history.append(measured)
        last.update(parameters)

    tables = {"train": synthetic(4000, 0), "validation": synthetic(1000, 1)}
    settings = TrainSettings(num_workers=1, epochs=4, batch_size=128, learning_rate=2e-3)
    train_in_process(DelayTask(), tables, settings, keep)
    return history, last


def test_the_network_learns_from_ranks_missing_flags_and_codes(
    trained: tuple[list[EpochMetrics], StateDict],
) -> None:
    history, _ = trained
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["auc"] > 0.95
    assert history[-1]["average_precision"] > 0.85


def test_a_network_is_rebuilt_from_its_parameters(
    trained: tuple[list[EpochMetrics], StateDict],
) -> None:
    network = build_network(trained[1])
    numbers, codes = columns_of(synthetic(50, 2))
    log_odds = network.late_log_odds(numbers, codes)
    for row in range(50):  # equal to the batch except for rounding
        alone = network.late_log_odds(numbers[row : row + 1], codes[row : row + 1])
        np.testing.assert_allclose(alone, log_odds[row : row + 1], rtol=1e-4, atol=1e-5)
    assert np.ptp(log_odds) > 1


def test_all_unseen_codes_are_equal(
    trained: tuple[list[EpochMetrics], StateDict],
) -> None:
    network = build_network(trained[1])
    numbers, _ = columns_of(synthetic(1, 3))
    every = [[-1, 0, 0], [3, 0, 0], [99, 0, 0]]
    answers = [network.late_log_odds(numbers, np.array([codes]))[0] for codes in every]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] != network.late_log_odds(numbers, np.array([[2, 0, 0]]))[0]


def test_only_often_missing_numbers_are_flagged() -> None:
    task, rows = DelayTask(), synthetic(500, 4)
    place = rows.column_names.index(f"{NUMBERS[2]}_bin")
    once = np.append(np.float32(-1), rows[place].to_numpy()[1:])
    rows = rows.set_column(place, rows.column_names[place], [once])
    task.prepare({"train": rows, "validation": rows})
    assert np.flatnonzero(task.build().flagged).tolist() == [1]


def test_ranks_are_scaled_without_missing_ones() -> None:
    task, rows = DelayTask(), synthetic(500, 4)
    assert task.prepare({"train": rows, "validation": rows}) == 500
    network = task.build()
    ranks = rows[f"{NUMBERS[1]}_bin"].to_numpy()
    assert network.middle[1].item() == pytest.approx(ranks[ranks >= 0].mean(), rel=1e-5)
    assert network.spread[1].item() == pytest.approx(ranks[ranks >= 0].std(), rel=1e-5)


def test_the_loss_weighs_the_target_threshold_twice() -> None:
    network = DelayNetwork(len(NUMBERS), (1, 1, 1)).eval()
    numbers, codes = torch.zeros(2, len(NUMBERS)), torch.zeros(2, 3, dtype=torch.int64)
    delay = torch.tensor([16.0, 15.0])
    chances = torch.sigmoid(network.log_odds(numbers, codes)).detach().numpy()
    expected = 0.0
    for row, minutes in enumerate(delay.tolist()):
        for at, threshold in enumerate(THRESHOLDS):
            chance = chances[row, at] if minutes > threshold else 1 - chances[row, at]
            expected -= np.log(chance) * (1.0 if at == 0 else 0.5) / 2
    assert network(numbers, codes, delay).item() == pytest.approx(expected, rel=1e-5)
