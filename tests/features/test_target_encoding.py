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
    rng = np.random.default_rng(0)
    category = np.array(["a", "b", "c", "d"], object)[rng.integers(0, 4, count)]
    late = (rng.random(count) < np.where(category == "a", 0.8, 0.2)).astype(float)
    days = np.datetime64("2013-01-01", "us") + rng.integers(0, 40, count) * DAY
    return pa.table(
        {
            "c": pa.array(category, mask=rng.random(count) < 0.1),
            "late": pa.array(late, mask=rng.random(count) < 0.1),
            "when": pa.array(days, mask=rng.random(count) < 0.05),
            "person": rng.integers(0, 50, count),
        }
    )


@pytest.mark.parametrize("smooth", [0.0, 20.0])
def test_means_equal_scikit_learn(smooth: float) -> None:
    rows = _rows().filter(pa.compute.is_valid(_rows()["late"]))
    category = np.array([value or "(missing)" for value in rows["c"].to_pylist()], object)
    peer = TargetEncoder(smooth=smooth, target_type="continuous")
    expected = peer.fit(category[:, None], rows["late"].to_numpy()).transform(category[:, None])
    fitted = fit(rows, TargetEncoded(["c"], target="late", smooth=smooth))
    means = bulk(fitted, rows)["c_mean_late"]
    np.testing.assert_allclose(means, expected[:, 0], rtol=1e-6)
    assert fitted.transform_one({"c": "unseen"}) == np.float32(np.mean(rows["late"].to_numpy()))


def test_rows_without_a_target_do_not_count() -> None:
    rows = {"c": ["a", "a", "b", "lone"], "y": [1.0, None, 0.0, None]}
    fitted = fit(rows, TargetEncoded(["c"], target="y", smooth=0))
    assert [fitted.transform_one({"c": c})[0] for c in ("a", "b", "lone")] == [1.0, 0.0, 0.5]


def test_only_the_most_frequent_categories_are_stored() -> None:
    rows = {"c": ["a", "a", "b"], "y": [1.0, 1.0, 0.0]}
    fitted = fit(rows, TargetEncoded(["c"], target="y", smooth=0, max_categories=1))
    assert [fitted.transform_one({"c": c})[0] for c in "ab"] == [1.0, np.float32(2 / 3)]


def test_a_block_reports_its_most_frequent_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_target, "CATEGORY_CAP", 2)
    rows = {"c": ["a", "b", "b", "c", "c", "c", None], "y": [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]}
    fitted = fit(rows, TargetEncoded(["c"], target="y", smooth=0), OneHot(["c"], max_categories=3))
    assert fitted.feature_names == ("c_mean_y", "c=b", "c=c", "c_other", "c_missing")
    assert [fitted.transform_one({"c": c})[0] for c in ("a", "b", "c", None)] == [
        np.float32(5 / 7), 0.0, 1.0, 1.0
    ]  # fmt: skip


def _train(
    rows: pa.Table, *transforms: TargetEncoded, rows_per_block: int = 1000
) -> dict[str, np.ndarray]:
    table = Table.from_arrow(rows, rows_per_block)
    fitted, training = Featurizer(transforms).fit_transform(table, keep=["late"])
    features = training.to_arrow()
    assert features.column_names == ["late", *fitted.feature_names]
    return {name: features[name].to_numpy() for name in fitted.feature_names}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("group", [None, "person"])
def test_a_row_is_encoded_out_of_fold(group: str | None) -> None:
    rows, folds = _rows(), 3
    options: Any = {"target": "late", "smooth": 5, "cv": folds, "group": group}
    means = _train(rows, TargetEncoded(["c"], **options), rows_per_block=150)["c_mean_late"]
    items = rows.to_pylist()
    numbered = rows.append_column(ROW, pa.array(np.arange(len(rows))))
    fold = folds_of(numbered, TargetEncoded(["c"], **options), ROW)
    assert np.bincount(fold, minlength=folds).min() > len(rows) / folds / 2
    if group:
        assert len({(item["person"], f) for item, f in zip(items, fold, strict=True)}) == 50
    for row, item in enumerate(items):
        outside = [
            peer for peer, f in zip(items, fold, strict=True)
            if f != fold[row] and peer["late"] is not None
        ]  # fmt: skip
        prior = np.mean([peer["late"] for peer in outside])
        same = [peer["late"] for peer in outside if peer["c"] == item["c"]]
        assert means[row] == np.float32((sum(same) + 5 * prior) / (len(same) + 5))


@pytest.mark.usefixtures("ray_cluster")
def test_a_unique_category_per_row_does_not_leak_the_label() -> None:
    rng = np.random.default_rng(1)
    late = (rng.random(600) < 0.3).astype(float)
    rows = pa.table({"c": np.arange(600), "late": late, "when": _rows(600)["when"]})
    for options in ({"cv": 5}, {"time": "when"}):
        transform = TargetEncoded(["c"], target="late", smooth=0, **options)
        seen = bulk(fit(rows, transform), rows)["c_mean_late"]
        np.testing.assert_array_equal(seen, late)  # the leak of a naive fit
        safe = _train(rows, transform)["c_mean_late"][:, None]
        assert LinearRegression().fit(safe, late).score(safe, late) < 0.03


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("smooth", "days"), [(0.0, 0), (5.0, 0), (5.0, 3)])
def test_a_row_is_encoded_by_strictly_earlier_times(smooth: float, days: int) -> None:
    rows, delay = _rows(), dt.timedelta(days=days)
    transform = TargetEncoded(
        ["c"], target="late", smooth=smooth, time="when", delay_s=delay.total_seconds()
    )
    means = _train(rows, transform, rows_per_block=150)["c_mean_late"]
    items = rows.to_pylist()
    for row, item in enumerate(items):
        earlier = [
            peer for peer in items
            if item["when"] is not None and peer["when"] is not None
            and peer["when"] + delay < item["when"] and peer["late"] is not None
        ]  # fmt: skip
        by: dict[Any, list[float]] = defaultdict(list)
        for peer in earlier:
            by[peer["c"]].append(peer["late"])
        prior = float(np.mean([peer["late"] for peer in earlier])) if earlier else 0.0
        same = by[item["c"]]
        weight = len(same) + smooth
        expected = (sum(same) + smooth * prior) / weight if weight else prior
        assert means[row] == np.float32(expected)
