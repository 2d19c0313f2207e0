import datetime as dt
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import TargetEncoder

from raysys.data import Table
from raysys.features import Featurizer, OneHot, TargetEncoded
from raysys.features import _target_encoding as _target
from raysys.features._target_encoding import ROW, folds_of
from tests.features.local import bulk, fit

DAY = np.timedelta64(1, "D")


def _rows(count: int = 400) -> pa.Table:
    made = np.random.default_rng(0)
    category = np.array(["a", "b", "c", "d"], object)[made.integers(0, 4, count)]
    late = (made.random(count) < np.where(category == "a", 0.8, 0.2)).astype(float)
    days = np.datetime64("2013-01-01", "us") + made.integers(0, 40, count) * DAY
    return pa.table(
        {
            "c": pa.array(category, mask=made.random(count) < 0.1),
            "late": pa.array(late, mask=made.random(count) < 0.1),
            "when": pa.array(days, mask=made.random(count) < 0.05),
            "person": made.integers(0, 50, count),
        }
    )


@pytest.mark.parametrize("smoothing", [0.0, 20.0])
def test_means_are_those_of_scikit_learn(smoothing: float) -> None:
    rows = _rows().filter(pa.compute.is_valid(_rows()["late"]))
    category = np.array([value or "(missing)" for value in rows["c"].to_pylist()], object)
    peer = TargetEncoder(smooth=smoothing, target_type="continuous")
    expected = peer.fit(category[:, None], rows["late"].to_numpy()).transform(category[:, None])
    fitted = fit(rows, TargetEncoded(["c"], target="late", smoothing=smoothing))
    found = bulk(fitted, rows)["c_mean_late"]
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-6)
    assert fitted.one({"c": "unseen"}) == np.float32(np.mean(rows["late"].to_numpy()))


def test_rows_without_a_target_do_not_count() -> None:
    rows = {"c": ["a", "a", "b", "only"], "y": [1.0, None, 0.0, None]}
    fitted = fit(rows, TargetEncoded(["c"], target="y", smoothing=0))
    assert [fitted.one({"c": c})[0] for c in ("a", "b", "only")] == [1.0, 0.0, 0.5]


def test_only_the_most_frequent_categories_are_kept() -> None:
    rows = {"c": ["a", "a", "b"], "y": [1.0, 1.0, 0.0]}
    fitted = fit(rows, TargetEncoded(["c"], target="y", smoothing=0, most=1))
    assert [fitted.one({"c": c})[0] for c in "ab"] == [1.0, np.float32(2 / 3)]


def test_a_block_reports_its_most_frequent_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_target, "CATEGORY_CAP", 2)
    rows = {"c": ["a", "b", "b", "c", "c", "c", None], "y": [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]}
    fitted = fit(rows, TargetEncoded(["c"], target="y", smoothing=0), OneHot(["c"], most=3))
    assert fitted.names == ("c_mean_y", "c=b", "c=c", "c_other", "c_missing")
    assert [fitted.one({"c": c})[0] for c in ("a", "b", "c", None)] == [
        np.float32(5 / 7), 0.0, 1.0, 1.0
    ]  # fmt: skip


def _train(rows: pa.Table, *made: TargetEncoded, rows_a_block: int = 1000) -> dict[str, np.ndarray]:
    table = Table.from_arrow(rows, rows_a_block)
    fitted, training = Featurizer(made).fit_transform(table, keep=["late"])
    found = training.arrow()
    assert found.column_names == ["late", *fitted.names]
    return {name: found[name].to_numpy() for name in fitted.names}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("group", [None, "person"])
def test_a_row_is_encoded_by_the_other_folds(group: str | None) -> None:
    rows, folds = _rows(), 3
    options: Any = {"target": "late", "smoothing": 5, "folds": folds, "group": group}
    found = _train(rows, TargetEncoded(["c"], **options), rows_a_block=150)["c_mean_late"]
    items = rows.to_pylist()
    numbered = rows.append_column(ROW, pa.array(np.arange(len(rows))))
    fold = folds_of(numbered, TargetEncoded(["c"], **options), ROW)
    assert np.bincount(fold, minlength=folds).min() > len(rows) / folds / 2
    if group:
        assert len({(item["person"], f) for item, f in zip(items, fold, strict=True)}) == 50
    for row, item in enumerate(items):
        others = [
            other for other, f in zip(items, fold, strict=True)
            if f != fold[row] and other["late"] is not None
        ]  # fmt: skip
        prior = np.mean([other["late"] for other in others])
        same = [other["late"] for other in others if other["c"] == item["c"]]
        assert found[row] == np.float32((sum(same) + 5 * prior) / (len(same) + 5))


@pytest.mark.usefixtures("ray_cluster")
def test_a_category_of_its_own_for_each_row_says_nothing_of_the_label() -> None:
    made = np.random.default_rng(1)
    late = (made.random(600) < 0.3).astype(float)
    rows = pa.table({"c": np.arange(600), "late": late, "when": _rows(600)["when"]})
    for options in ({"folds": 5}, {"time": "when"}):
        transform = TargetEncoded(["c"], target="late", smoothing=0, **options)
        seen = bulk(fit(rows, transform), rows)["c_mean_late"]
        np.testing.assert_array_equal(seen, late)  # what a naive fit would be trained on
        safe = _train(rows, transform)["c_mean_late"][:, None]
        assert LinearRegression().fit(safe, late).score(safe, late) < 0.03


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("smoothing", "days"), [(0.0, 0), (5.0, 0), (5.0, 3)])
def test_a_row_is_encoded_by_strictly_earlier_times(smoothing: float, days: int) -> None:
    rows, delay = _rows(), dt.timedelta(days=days)
    transform = TargetEncoded(
        ["c"], target="late", smoothing=smoothing, time="when", delay_s=delay.total_seconds()
    )
    found = _train(rows, transform, rows_a_block=150)["c_mean_late"]
    items = rows.to_pylist()
    for row, item in enumerate(items):
        earlier = [
            other for other in items
            if item["when"] is not None and other["when"] is not None
            and other["when"] + delay < item["when"] and other["late"] is not None
        ]  # fmt: skip
        by: dict[Any, list[float]] = defaultdict(list)
        for other in earlier:
            by[other["c"]].append(other["late"])
        prior = float(np.mean([other["late"] for other in earlier])) if earlier else 0.0
        same = by[item["c"]]
        weight = len(same) + smoothing
        expected = (sum(same) + smoothing * prior) / weight if weight else prior
        assert found[row] == np.float32(expected)
