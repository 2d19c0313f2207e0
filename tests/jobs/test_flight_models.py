"""Labels of the trees, and calibration and metrics of the models."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from jobs.flight_features import FEATURES
from jobs.flight_models import measure, measure_peer, with_hard_target, with_soft_target
from raysys.data import Table
from raysys.models import LogisticBlend


class InMemoryTable:
    """A Table in this process."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def to_arrow(self) -> pa.Table:
        return self.rows


def synthetic(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, len(FEATURES))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    delay = 20 * np.nan_to_num(x[:, 0]) + 10 * np.nan_to_num(x[:, 1]) + rng.normal(0, 20, rows)
    columns = {name: pa.array(x[:, at], from_pandas=True) for at, name in enumerate(FEATURES)}
    return pa.table(columns | {"arr_delay": delay, "late": (delay > 15).astype(np.int8)})


@pytest.mark.usefixtures("ray_cluster")
def test_a_label_near_the_limit_is_near_a_half() -> None:
    rows = synthetic(6, 0)
    delays = np.array([-60.0, 9.0, 15.0, 16.0, 21.0, 300.0])
    rows = rows.set_column(rows.column_names.index("arr_delay"), "arr_delay", [delays])
    soft = with_soft_target(Table.from_arrow(rows))
    assert soft.schema.names == [*FEATURES, "target"]
    expected = [0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-1 / 6)), np.e / (1 + np.e), 1]
    assert soft.to_arrow()["target"].to_pylist() == pytest.approx(expected, abs=1e-5)
    assert with_hard_target(Table.from_arrow(rows)).to_arrow()["target"].equals(rows["late"])


def test_each_model_alone_is_calibrated_on_the_validation_month() -> None:
    rng = np.random.default_rng(1)
    parts: list[Any] = []
    for _ in range(2):
        truth = rng.normal(-1, 1.5, 4000)
        late = (rng.random(4000) < 1 / (1 + np.exp(-truth))).astype(np.int8)
        parts.append(
            InMemoryTable(pa.table({"boosted": 3 * truth, "network": truth - 2, "late": late}))
        )
    test = parts[1].rows.to_pandas()
    metrics = measure(*parts, LogisticBlend((0.0, 1.0), 0.0))
    assert list(metrics) == ["XGBoost alone", "network alone", "raysys"]
    assert len({round(values["auc"], 6) for values in metrics.values()}) == 1
    assert metrics["raysys"]["auc"] == pytest.approx(roc_auc_score(test["late"], test["network"]))
    assert metrics["XGBoost alone"]["calibration_error"] < 0.03
    assert metrics["network alone"]["calibration_error"] < 0.03 < 0.1
    assert metrics["raysys"]["calibration_error"] > 0.1  # the blend is too low by two


@pytest.mark.parametrize("settings", [{}, {"max_iter": 30, "max_leaf_nodes": 7}])
def test_the_peer_is_scikit_learn_on_the_same_columns(settings: dict[str, Any]) -> None:
    rows = {"train": synthetic(1500, 1), "validation": synthetic(600, 2), "test": synthetic(600, 3)}
    metrics = measure_peer({name: InMemoryTable(part) for name, part in rows.items()}, settings)  # type: ignore[misc]
    frames = {name: part.to_pandas() for name, part in rows.items()}
    x = {name: frame[list(FEATURES)] for name, frame in frames.items()}
    # The measured peer stops where it ranks the validation month best.
    longest = settings.get("max_iter", 100)

    def fitted(iterations: int) -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(
            **{**settings, "max_iter": iterations}, random_state=0, early_stopping=False
        ).fit(x["train"].to_numpy(), frames["train"]["late"])

    stages = fitted(longest).staged_decision_function(x["validation"].to_numpy())
    areas = [roc_auc_score(frames["validation"]["late"], score) for score in stages]
    best = fitted(int(np.argmax(areas)) + 1 if settings else longest)
    score = {name: best.decision_function(x[name].to_numpy())[:, None] for name in x}
    scale = LogisticRegression(C=np.inf).fit(score["validation"], frames["validation"]["late"])
    chances = scale.predict_proba(score["test"])[:, 1]
    late = frames["test"]["late"]
    assert metrics["auc"] == pytest.approx(roc_auc_score(late, chances), abs=1e-9)
    assert metrics["average_precision"] == pytest.approx(average_precision_score(late, chances))
