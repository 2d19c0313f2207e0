import itertools
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from raysys.data import (
    LeakReport,
    Splits,
    Table,
    check_leaks,
    hash_rows,
    oversample,
    split_stratified,
)
from raysys.data.leakage._bins import LeakBins, edges_of
from raysys.data.leakage._column_power import (
    Label,
    PredictivePower,
    auc,
    count_block,
    kolmogorov_smirnov,
    predictive_power,
    stability_index,
    transferred_power,
)
from raysys.data.leakage._shared_rows import RowComparison, SharedRows, compare, entries
from raysys.errors import ArgumentError, DataError

ROWS = 4000


def _frame(seed: int = 0, rows: int = ROWS) -> pd.DataFrame:
    """Weak features, and a label that depends on one of them."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, rows)
    return pd.DataFrame(
        {
            "id": np.arange(rows) + seed * rows,
            "day": np.arange(rows) + seed * rows,
            "age": np.where(rng.random(rows) < 0.05, np.nan, age),
            "noise": rng.integers(0, 5, rows),
            "city": rng.choice(["Bonn", "Kiel", "Ulm", None], rows, p=[0.5, 0.3, 0.15, 0.05]),
            "name": [f"person {n + seed * rows}" for n in range(rows)],
            "sold": (age + rng.normal(0, 10, rows) > 45).astype(int),
        }
    )


def _arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def _counted(frame: pd.DataFrame, column: str, label: Label | None, *cuts: int) -> np.ndarray:
    """Counts of a column in bins of the same rows."""
    table = _arrow(frame)
    number = pd.api.types.is_numeric_dtype(frame[column])
    bins = LeakBins(column, number, edges_of([column], [number], table)[0])
    edges = [0, *cuts, len(table)]
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    return sum(count_block(p, a, [bins], label)[0] for p, a in zip(parts, edges, strict=False))


def _classes(frame: pd.DataFrame, column: str) -> Label:
    return Label(column, np.unique(hash_rows(_arrow(frame), [column])))


def test_the_area_equals_scikit_learn_within_the_ties() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.1
    for strength in (0.0, 0.5, 3.0):
        scores = rng.normal(size=20_000) + strength * labels
        exact = roc_auc_score(labels, scores)
        label = Label("y", np.sort(hash_rows(pa.table({"y": [False, True]}))))
        counts = _counted(pd.DataFrame({"x": scores, "y": labels}), "x", label, 777).sum(axis=0)
        of_true = int(label.classes[0] != hash_rows(pa.table({"y": [True]}))[0])
        area, ties = auc(counts[:, 1 - of_true], counts[:, of_true])
        assert abs(area - exact) <= ties < 0.003
        assert predictive_power(
            _counted(pd.DataFrame({"x": scores, "y": labels}), "x", label), False, True
        )
    few = np.round(scores)
    counts = _counted(pd.DataFrame({"x": few, "y": labels}), "x", label).sum(axis=0)
    area, _ = auc(counts[:, 1 - of_true], counts[:, of_true])
    assert area == pytest.approx(roc_auc_score(labels, few), abs=1e-12)


def test_counts_equal_pandas_and_do_not_depend_on_the_blocks() -> None:
    frame = _frame()
    label = _classes(frame, "sold")
    for column in ("noise", "city", "age"):
        counts = _counted(frame, column, label)
        assert (counts == _counted(frame, column, label, 5, 5, 3001)).all()
        assert counts[..., -1].sum() == 0, "every row has a label"
        assert counts[:, 0].sum() == frame[column].isna().sum()
    cells = _counted(frame, "noise", label).sum(axis=0)[1:6, :2]
    expected = pd.crosstab(frame["noise"], frame["sold"]).to_numpy()
    in_order = hash_rows(pa.table({"y": [0, 1]}))
    assert (cells[:, np.argsort(np.argsort(in_order))] == expected).all()
    numbers = _counted(frame, "city", Label("age", None, 40.0))
    assert np.allclose(numbers, _counted(frame, "city", Label("age", None, 40.0), 9, 2000))
    assert numbers[..., 1].sum() == pytest.approx((frame["age"] - 40).sum())
    assert numbers[..., 2].sum() == pytest.approx(((frame["age"] - 40) ** 2).sum())


def _power(frame: pd.DataFrame, column: str, label: str = "sold") -> PredictivePower:
    number = frame[column].dtype != object
    if label == "sold":
        return predictive_power(_counted(frame, column, _classes(frame, label)), False, number)
    return predictive_power(_counted(frame, column, Label(label, None, 0.0)), True, number)


def test_a_unique_column_has_no_power() -> None:
    frame = _frame()
    for column in ("name", "id", "noise"):
        assert abs(_power(frame, column).score - 0.5) < 0.03, column


def test_a_leak_is_seen_as_number_category_missing_value_or_curve() -> None:
    frame = _frame()
    rng = np.random.default_rng(1)
    sold = frame["sold"] == 1
    frame["paid"] = np.where(sold, rng.uniform(1, 9, ROWS), 0.0)
    frame["state"] = np.where(sold, "shipped", rng.choice(["new", "lost"], ROWS))
    frame["date"] = np.where(sold, rng.uniform(0, 1, ROWS), np.nan)
    frame["curve"] = np.where(sold, rng.choice([-1.0, 1.0], ROWS), rng.uniform(-0.9, 0.9, ROWS))
    for column in ("paid", "state", "date", "curve"):
        power = _power(frame, column)
        assert power.score > 0.98, column
        assert power.sigmas > 5, column
    assert 0.7 < _power(frame, "age").score < 0.9


def test_the_worst_class_of_several_counts_but_not_one_of_a_few_rows() -> None:
    frame = _frame()
    frame["sold"] = np.arange(ROWS) % 3
    frame["tell"] = np.where(frame["sold"] == 2, "c", "d")
    assert _power(frame, "tell").score == 1.0
    frame["sold"] = np.where(frame.index < 4, 9, np.arange(ROWS) % 2)
    frame["tell"] = np.where(frame["sold"] == 9, "c", "d")
    assert _power(frame, "tell").sigmas < 5


def test_the_explained_variance_equals_the_squared_correlation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    for noise in (0.1, 1.0, 10.0):
        y = x + noise * rng.normal(size=20_000)
        expected = np.corrcoef(x, y)[0, 1] ** 2
        assert _power(pd.DataFrame({"x": x, "y": y}), "x", "y").score == pytest.approx(
            expected, abs=0.02
        )


def test_a_leak_is_seen_in_a_few_hundred_rows() -> None:
    frame = _frame(rows=300)
    rng = np.random.default_rng(1)
    sold = frame["sold"] == 1
    frame["curve"] = np.where(sold, rng.choice([-1.0, 1.0], 300), rng.uniform(-0.9, 0.9, 300))
    assert _power(frame, "curve").score > 0.95
    few = frame.assign(paid=frame["sold"]).iloc[:60]
    assert (_power(few, "paid").score, _power(few, "paid").sigmas > 5) == (1.0, True)
    frame["tax"] = frame["sum"] = rng.normal(size=300)
    assert _power(frame, "tax", "sum").score > 0.85


def test_a_feature_of_the_training_labels_loses_its_power() -> None:
    train, test = _frame(0), _frame(1)
    for frame in (train, test):
        frame["copy"] = frame["sold"] * 1.0
    test["copy"] = np.random.default_rng(0).permutation(test["copy"])
    label = _classes(train, "sold")
    bins = LeakBins("copy", True, np.array([0.0, 1.0]))
    counts = [count_block(_arrow(frame), 0, [bins], label)[0] for frame in (train, test)]
    assert predictive_power(counts[0], False, False).score == 1.0
    assert abs(transferred_power(counts[0], counts[1], False).score - 0.5) < 0.03


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_the_distance_equals_scipy_within_a_bin(shift: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=5000), rng.normal(shift, size=3000)
    bins = LeakBins("x", True, edges_of(["x"], [True], pa.table({"x": a}))[0])
    counts = [np.bincount(bins.of(pa.table({"x": x})), minlength=bins.count)[1:] for x in (a, b)]
    distance, exact = kolmogorov_smirnov(*counts), ks_2samp(a, b).statistic
    tolerance = (counts[0] / 5000).max() + (counts[1] / 3000).max()
    assert exact - tolerance <= distance <= exact + 1e-12


def test_the_stability_index_equals_its_formula() -> None:
    train, test = np.array([500.0, 300.0, 200.0]), np.array([100.0, 300.0, 600.0])
    a, b = (train + 0.5) / 1001.5, (test + 0.5) / 1001.5
    expected = sum((q - p) * np.log(q / p) for p, q in zip(a, b, strict=True))
    assert stability_index(train, test) == (pytest.approx(expected), 3)
    assert stability_index(np.append(train, [3, 0, 1]), np.append(test, [0, 2, 1]))[1] == 4


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([*range(12), None]), max_size=25), min_size=2, max_size=3),
    st.integers(0, 2),
)
def test_shared_rows_equal_brute_force(splits: list[list[Any]], bits: int) -> None:
    comparisons = [RowComparison(("a",)), RowComparison(("a",), missing=True)]
    parts = []
    for number, values in enumerate(splits):
        table, cut = pa.table({"a": pa.array(values, pa.int64())}), len(values) // 3
        for first, block in ((0, table.slice(0, cut)), (cut, table.slice(cut))):
            parts.append(entries(block, first, comparisons, number, 1 << bits))
    overlaps: dict[tuple[int, int, int], SharedRows] = {}
    for n in range(1 << bits):
        for pair, shared in compare(*[part[n] for part in parts]).items():
            total = overlaps.setdefault(pair, SharedRows())
            total.rows += shared.rows
            total.examples += shared.examples
    for number, (a, b) in itertools.product((0, 1), itertools.permutations(range(len(splits)), 2)):
        left, right = splits[a], splits[b]
        expected = [v for v in right if v in left and (number == 1 or v is not None)]
        shared = overlaps.get((number, a, b), SharedRows())
        assert shared.rows == len(expected)
        assert bool(shared.examples) == bool(expected)
        for x, y in shared.examples:
            assert left[x] == right[y]
            assert (left.index(left[x]), right.index(right[y])) == (x, y)


def _splits(train: pd.DataFrame, test: pd.DataFrame, rows_per_block: int = 1500) -> Splits:
    frames = {"train": train, "test": test}
    return Splits({n: Table.from_arrow(_arrow(f), rows_per_block) for n, f in frames.items()})


def _check(splits: Splits, **options: Any) -> LeakReport:
    return check_leaks(splits, **{"label": "sold", "keys": ["id"], "time": "day"} | options)


def _kinds(report: LeakReport) -> Counter[tuple[str, str]]:
    return Counter((finding.kind, finding.subject) for finding in report.findings)


@pytest.fixture(scope="module")
def clean(ray_cluster: None) -> Splits:
    return _splits(_frame(0), _frame(1).iloc[:1500])


def test_splits_without_a_leak_pass(clean: Splits) -> None:
    report = _check(clean, features=["age", "noise", "city"])
    assert report.findings == ()
    assert report.require(suspicions=True) is report
    assert str(report).startswith("no leaks\nchecked: 5500 rows by id\n")
    assert "checked: how well each of them predicts sold, 2 classes" in str(report)
    assert repr(report) == "<LeakReport 0 leaks, 0 suspicions>"


def test_names_unseen_in_training_are_reported(clean: Splits) -> None:
    report = _check(clean)
    assert _kinds(report)["unseen categories", "name"] == 1
    (unseen,) = [f for f in report.findings if f.kind == "unseen categories"]
    assert (unseen.value, unseen.certain) == (1.0, False)
    assert report.leaks == ()
    with pytest.raises(DataError, match="name that no row of train has"):
        report.require(suspicions=True)


def test_each_leak_is_reported(clean: Splits) -> None:
    train, test = _frame(0), _frame(1).iloc[:1500].copy()
    rng = np.random.default_rng(0)
    test.loc[:2, "id"] = [7, 8, 7]
    test.loc[10:13, "day"] = [3, 3990, 3998, 3999]
    for frame in (train, test):
        frame["paid"] = frame["sold"] * rng.uniform(1, 2, len(frame))
    train["mean"] = train["sold"] + rng.normal(0, 0.5, ROWS)
    test["mean"] = 0.5 + rng.normal(0, 0.5, 1500)
    test.loc[test.index < 600, "age"] = None
    test["noise"] += 2
    test.loc[test.index < 300, "city"] = "Rome"
    splits = _splits(train, test)
    report = _check(splits)
    kinds = _kinds(report)
    assert set(kinds) == {
        ("shared rows", "rows"), ("time order", "day"), ("suspicious feature", "paid"),
        ("power loss", "mean"), ("missing values", "age"), ("unseen categories", "city"),
        ("unseen categories", "name"), ("distribution", "noise"), ("distribution", "name"),
        ("distribution", "city"),
    }  # fmt: skip
    by = {(finding.kind, finding.subject): finding for finding in report.findings}
    shared = by["shared rows", "rows"]
    assert (shared.value, shared.certain) == (3, True)
    assert "train 7 = test 0, train 8 = test 1" in shared.fact
    order = by["time order", "day"]
    assert order.value == 3
    assert order.fact == (
        "3 rows of test are before the last of train (3999), and 3996 of train after the first "
        "of test (3)"
    )
    assert by["suspicious feature", "paid"].value == 1.0
    assert by["unseen categories", "city"].value == pytest.approx(0.2)
    missing = test["age"].isna().mean() - train["age"].isna().mean()
    assert by["missing values", "age"].value == pytest.approx(missing)
    exact = ks_2samp(train["noise"], test["noise"]).statistic
    assert by["distribution", "noise"].value == pytest.approx(exact)
    with pytest.raises(DataError, match=r"(?s)leak into each other:\n- 3 of the.*\n- 3 rows of"):
        report.require()
    assert json.loads(report.to_json())["findings"][0]["kind"] == report.findings[0].kind
    assert "LEAK  shared rows" in str(report)
    assert _check(_splits(train, test, 100_000)) == report, "the blocks make a difference"


def test_rows_equal_in_all_features_are_a_suspicion_without_keys(clean: Splits) -> None:
    report = check_leaks(clean, features=["noise", "city"])
    (finding,) = report.findings
    assert (finding.kind, finding.certain, finding.value) == ("shared rows", False, 1500)


def test_what_was_fitted_on_more_than_the_training_split_is_compare(clean: Splits) -> None:
    train, test = clean.train, clean["test"]

    def fitted(on: str, rows: int) -> LeakReport:
        scaler = SimpleNamespace(fitted_on=on, rows=rows)
        return _check(clean, features=["noise"], fitted=[scaler])

    assert fitted(train.fingerprint(), len(train)).findings == ()
    for on, rows, certain, fact in [
        (test.fingerprint(), len(test), True, "was fitted on the split test: 1500 rows"),
        ("other", 5500, True, "was fitted on more than the training split: 5500 rows"),
        ("other", 3000, False, "was fitted on a Table of 3000 rows that is not one of these"),
    ]:
        (finding,) = fitted(on, rows).findings
        assert (finding.kind, finding.certain) == ("fitted beyond training", certain)
        assert fact in finding.fact


def test_a_balanced_training_split_is_checked_before_balancing(ray_cluster: None) -> None:
    table = Table.from_arrow(_arrow(_frame(rows=2000).drop(columns=["day", "name"])))
    splits = split_stratified(table, {"train": 0.7, "test": 0.3}, ["sold"])
    balanced = oversample(splits, "sold")
    scaler = SimpleNamespace(fitted_on=balanced.train.fingerprint(), rows=len(balanced.train))
    report = check_leaks(balanced, label="sold", keys=["id"], fitted=[scaler])
    assert report.findings == ()
    assert len(balanced.train) > len(splits.train)


def test_blocks_without_rows_or_values_change_nothing(clean: Splits) -> None:
    features = ["age", "noise", "city"]
    expected = _check(clean, features=features)
    rows = {name: part.to_arrow() for name, part in clean.items()}
    edges = {"train": [0, 0, 700, 700, ROWS, ROWS], "test": [0, 0, 1500]}
    again = {}
    for name, split in rows.items():
        cuts = itertools.pairwise(edges[name])
        parts = [Table.from_arrow(split.slice(a, b - a)) for a, b in cuts]
        blocks = [block for part in parts for block in part.blocks()]
        again[name] = Table(blocks, [meta for part in parts for meta in part.metas()])
    assert _check(Splits(again), features=features) == expected
    missing = {name: part.map_blocks(_without_city) for name, part in clean.items()}
    assert _check(Splits(missing), features=features).findings == ()
    with pytest.raises(DataError, match="the table has no rows"):
        _check(Splits({**clean, "test": Table.from_arrow(rows["test"].slice(0, 0))}))


def _without_city(block: pa.Table) -> pa.Table:
    city = block.column_names.index("city")
    return block.set_column(city, "city", pa.nulls(len(block), pa.string()))


def test_a_numeric_label_is_predicted_as_a_number(ray_cluster: None) -> None:
    train, test = (_frame(seed)[["noise", "city"]] for seed in (0, 1))
    for seed, frame in enumerate((train, test)):
        frame["price"] = np.random.default_rng(seed).normal(100, 20, ROWS)
        frame["tax"] = frame["price"] * 0.19
    report = check_leaks(_splits(train, test), label="price", features=["noise", "city", "tax"])
    suspicious = [f for f in report.findings if f.kind == "suspicious feature"]
    assert [f.subject for f in suspicious] == ["tax"]
    assert "explained variance 0.98" in suspicious[0].fact
    assert "how well each of them predicts price, a number" in report.checks


def test_a_column_that_a_split_lacks_is_refused(clean: Splits) -> None:
    with pytest.raises(DataError, match=r"no such columns: \['id', 'price'"):
        _check(clean, label="price")
    with pytest.raises(ArgumentError, match=r"keys is the text 'id', not a list: give \['id'\]"):
        _check(clean, keys="id")


def test_times_in_different_units_are_refused(ray_cluster: None) -> None:
    tables = {
        name: Table.from_arrow(pa.table({"t": pa.array([1, 2], pa.timestamp(unit))}))
        for name, unit in {"train": "us", "test": "ms"}.items()
    }
    with pytest.raises(DataError, match=r"t is timestamp\[us\] in the training split and .*\[ms\]"):
        check_leaks(Splits(tables), time="t")
