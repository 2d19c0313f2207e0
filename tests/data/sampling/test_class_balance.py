from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from sklearn.utils.class_weight import compute_class_weight

from raysys.data import Splits, Table, class_counts, class_weights, oversample, undersample
from raysys.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_cluster")

CLASSES = ["common"] * 60 + ["rare"] * 7 + ["some"] * 23


@pytest.fixture(scope="module")
def splits(ray_cluster: None) -> Splits:
    classes = np.random.default_rng(0).permutation(CLASSES)
    rows = pa.table({"row": np.arange(90), "c": classes})
    return Splits({"train": Table.from_arrow(rows, 40), "test": Table.from_arrow(rows.slice(50))})


def test_oversampling_repeats_rows_equally_often(splits: Splits) -> None:
    balanced = oversample(splits, "c")
    rows = balanced.train.to_arrow()
    assert Counter(rows["c"].to_pylist()) == {"common": 60, "rare": 60, "some": 60}
    assert rows["row"].to_pylist() == sorted(rows["row"].to_pylist())
    classes = dict(zip(*splits.train.to_arrow().to_pydict().values(), strict=True))
    times = Counter(rows["row"].to_pylist())
    for name, expected in {"common": {1}, "rare": {8, 9}, "some": {2, 3}}.items():
        assert {times[row] for row in range(90) if classes[row] == name} == expected
    assert balanced["test"] is splits["test"]
    assert balanced.original == dict(splits)
    assert balanced.description == "custom; 2 classes of c oversampled to 1"


def test_undersampling_drops_rows_of_the_larger_classes(splits: Splits) -> None:
    rows = undersample(splits, "c", sampling_strategy=0.5).train.to_arrow()
    assert Counter(rows["c"].to_pylist()) == {"common": 14, "rare": 7, "some": 14}
    numbers = rows["row"].to_pylist()
    assert numbers == sorted(set(numbers))
    assert undersample(splits, "c", sampling_strategy=0.5).train.to_arrow().equals(rows)
    assert not undersample(splits, "c", sampling_strategy=0.5, seed=1).train.to_arrow().equals(rows)


def test_classes_within_the_sampling_strategy_are_unchanged(splits: Splits) -> None:
    counts = Counter(
        oversample(splits, "c", sampling_strategy=0.3).train.to_arrow()["c"].to_pylist()
    )
    assert counts == {"common": 60, "rare": 18, "some": 23}
    rows = undersample(splits, "c", sampling_strategy=0.2).train.to_arrow()
    counts = Counter(rows["c"].to_pylist())
    assert counts == {"common": 35, "rare": 7, "some": 23}


def test_class_weights_equal_scikit_learn(splits: Splits) -> None:
    classes = np.unique(CLASSES)
    expected = compute_class_weight("balanced", classes=classes, y=np.array(CLASSES))
    assert class_weights(splits, "c") == pytest.approx(dict(zip(classes, expected, strict=True)))
    assert class_counts(splits.train, "c") == {"common": 60, "rare": 7, "some": 23}


@pytest.mark.parametrize("change", [oversample, undersample, class_weights])
def test_an_evaluation_split_is_refused(change: object, splits: Splits) -> None:
    with pytest.raises(DataError, match="takes Splits and changes the training split only"):
        change(splits["test"], "c")  # type: ignore[operator]


def test_invalid_balancing_is_refused(splits: Splits) -> None:
    for strategy in (0, 1.5):
        with pytest.raises(DataError, match=f"sampling_strategy={strategy}"):
            oversample(splits, "c", sampling_strategy=strategy)
    single = Splits({"train": Table.from_arrow(pa.table({"c": ["a", "a"], "d": ["a", None]}))})
    with pytest.raises(DataError, match="every row of the training split is of class 'a'"):
        undersample(single, "c")
    with pytest.raises(DataError, match="d: 1 of the 2 rows have no class"):
        class_weights(single, "d")
