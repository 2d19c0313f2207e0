from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.semi_supervised import SelfTrainingClassifier

from raysys.data import Splits, Table, split_by_hash
from raysys.errors import DataError
from raysys.labels import SelfTrainingRound, self_train
from raysys.labels._self_training import split_block

PIXELS = [f"pixel_{number}" for number in range(64)]


class Fit:
    """A scikit-learn classifier as the `fit` of `self_train`."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, table: Table) -> Any:
        rows = table.to_arrow()
        return Predict(self.model.fit(_matrix(rows), np.array(rows["digit"].to_pylist())))


class Predict:
    def __init__(self, model: Any):
        self.model = model

    def __call__(self, block: pa.Table) -> np.ndarray:
        return self.model.predict_proba(_matrix(block))


def _matrix(rows: pa.Table) -> np.ndarray:
    return np.stack([rows[name].to_numpy() for name in PIXELS], axis=1)


def _digits(seed: int, digits: int = 10) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    order = order[y[order] < digits]
    return x[order] / 16, y[order]


def _table(x: np.ndarray, **columns: Any) -> pa.Table:
    return pa.table({**dict(zip(PIXELS, x.T, strict=True)), **columns})


def _model() -> LogisticRegression:
    return LogisticRegression(C=100, max_iter=500)


def _compare_with_scikit_learn(seed: int) -> tuple[float, float]:
    """Accuracies before and after self-training from 50 labels, compared with scikit-learn."""
    x, y = _digits(seed)
    text = np.array([f"digit {value}" for value in y])
    start, train = 50, 1000
    numbers = np.arange(train)
    labelled = Table.from_arrow(_table(x[:start], row=numbers[:start], digit=text[:start]), 30)
    unlabelled = Table.from_arrow(_table(x[start:train], row=numbers[start:]), 400)
    trained = self_train(
        Fit(_model()), labelled, unlabelled, label="digit", threshold=0.95, max_iter=4
    )

    peer = SelfTrainingClassifier(_model(), threshold=0.95, max_iter=4)
    peer.fit(x[:train], np.where(numbers < start, y[:train], -1))
    rows = trained.table.to_arrow().sort_by("row")
    labelled_rows = np.flatnonzero(peer.labeled_iter_ >= 0)
    assert rows["row"].to_pylist() == labelled_rows.tolist()
    assert rows["round"].to_pylist() == peer.labeled_iter_[labelled_rows].tolist()
    assert rows["digit"].to_pylist() == [
        f"digit {value}" for value in peer.transduction_[labelled_rows]
    ]
    weights = rows["weight"].to_numpy()
    assert (weights[:start] == 1).all()
    assert (weights[start:] > 0.95).all()
    added = np.bincount(peer.labeled_iter_[labelled_rows])[1:].tolist()
    assert [sum(round_.added.values()) for round_ in trained.rounds] == added
    assert len(added) == 4
    assert trained.rounds[-1].unlabelled == train - len(labelled_rows)
    assert peer.termination_condition_ == trained.termination_condition == "max_iter"
    assert trained.table.lineage.operation == "self_train"

    test = _table(x[train:])
    alone = Fit(_model())(labelled)
    before = float((alone(test).argmax(axis=1) == y[train:]).mean())
    after = float((trained.predictor(test).argmax(axis=1) == y[train:]).mean())
    assert after == pytest.approx(peer.score(x[train:], y[train:]), abs=0.003)
    return before, after


@pytest.mark.usefixtures("ray_cluster")
def test_labels_match_scikit_learn_and_improve_the_model() -> None:
    before, after = np.mean([_compare_with_scikit_learn(seed) for seed in (0, 1)], axis=0)
    assert after > before + 0.02


@pytest.mark.usefixtures("ray_cluster")
def test_it_ends_when_all_are_labelled_or_nothing_changes() -> None:
    x, y = _digits(seed=1, digits=2)
    labelled = Table.from_arrow(_table(x[:20], digit=y[:20]))
    unlabelled = Table.from_arrow(_table(x[20:60]), 25)
    all_of_them = self_train(Fit(GaussianNB()), labelled, unlabelled, label="digit", threshold=0.5)
    assert all_of_them.termination_condition == "all_labeled"
    assert len(all_of_them.table) == 60
    assert all_of_them.table.schema.field("digit").type == pa.int64()

    def unsure(table: Table) -> Any:
        return lambda block: np.full((len(block), 2), 0.5)

    none = self_train(unsure, labelled, unlabelled, label="digit", threshold=0.5, max_iter=3)
    assert (none.termination_condition, len(none.table)) == ("no_change", 20)
    assert repr(none) == "SelfTrainingResult(no_change, rows added by round: [0])"
    assert none.rounds == (SelfTrainingRound(1, {0: 0, 1: 0}, 40),)


@pytest.mark.usefixtures("ray_cluster")
def test_rows_of_an_evaluation_split_are_refused() -> None:
    x, y = _digits(seed=2, digits=2)
    table = Table.from_arrow(_table(x, digit=y))
    shares = {"train": 0.5, "later": 0.3, "test": 0.2}
    splits = split_by_hash(table, shares, PIXELS)
    fit = Fit(GaussianNB())
    for name in ("later", "test"):
        unlabelled = splits[name].select(PIXELS)
        with pytest.raises(DataError, match=f"the unlabelled rows come from the split '{name}'"):
            self_train(fit, splits, unlabelled, label="digit")
    with pytest.raises(DataError, match="the labelled rows come from the split 'test'"):
        self_train(fit, splits["test"], splits["train"].select(PIXELS), label="digit")
    # The training split is for training.
    few = Splits(dict(split_by_hash(splits.train, {"train": 0.2, "rest": 0.8}, PIXELS)))
    rest = few["rest"].select(PIXELS)
    assert self_train(fit, few.train, rest, label="digit", max_iter=1).rounds[0].number == 1


@pytest.mark.usefixtures("ray_cluster")
def test_invalid_arguments_are_refused() -> None:
    x, y = _digits(seed=3, digits=2)
    labelled = Table.from_arrow(_table(x[:20], digit=y[:20]))
    unlabelled = Table.from_arrow(_table(x[20:60]))
    fit = Fit(GaussianNB())
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (labelled, labelled, {}, "the unlabelled rows have a column 'digit'"),
        (unlabelled, unlabelled, {}, "have no column 'digit'"),
        (labelled, unlabelled.select(PIXELS[1:]), {}, "the unlabelled rows lack"),
        (labelled, unlabelled, {"threshold": 1.0}, "threshold=1.0"),
        (labelled, unlabelled, {"max_iter": 0}, "max_iter=0"),
        (
            labelled.rename({"pixel_0": "weight"}),
            unlabelled,
            {},
            r"already have columns \['weight'\]",
        ),
        (Table.from_arrow(_table(x[:3], digit=[1, 1, 1])), unlabelled, {}, "of one class"),
    ]
    for first, second, options, message in wrong:
        with pytest.raises(DataError, match=message):
            self_train(fit, first, second, label="digit", **options)


def test_a_block_is_split_by_the_threshold_and_bad_probabilities_are_refused() -> None:
    block = pa.table({"x": [0.1, 0.9, 0.7, 0.2]})

    def predictor(rows: pa.Table) -> np.ndarray:
        x = rows["x"].to_numpy()
        return np.stack([1 - x, x], axis=1)

    how = ("c", pa.string(), ["no", "yes"], 0.8, 3)
    sure, left = split_block(block, predictor, *how)
    assert sure.to_pydict() == {
        "x": [0.1, 0.9], "c": ["no", "yes"], "weight": [0.9, 0.9], "round": [3, 3]
    }  # fmt: skip
    assert left["x"].to_pylist() == [0.7, 0.2]  # 0.8 is not over 0.8
    none, nothing = split_block(block.slice(0, 0), predictor, *how)
    assert (none.schema, len(nothing)) == (sure.schema, 0)
    with pytest.raises(DataError, match=r"returned shape \(4, 1\) for 4 rows.*of shape \(4, 2\)"):
        split_block(block, lambda rows: predictor(rows)[:, :1], *how)
