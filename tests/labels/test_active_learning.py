from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from raysys.data import Table
from raysys.errors import DataError
from raysys.labels import pick
from raysys.labels._active_learning import best_of_block, uncertainty

NAMES = ["p0", "p1", "p2"]


def _rows(count: int, seed: int = 0) -> pa.Table:
    """Rows with probabilities, many of them equal, and groups of unlike size."""
    rng = np.random.default_rng(seed)
    made = rng.multinomial(8, [0.5, 0.3, 0.2], count) / 8
    group = rng.choice(["a", "b", "c", None], count, p=[0.7, 0.2, 0.07, 0.03])
    return pa.table({"id": np.arange(count), **dict(zip(NAMES, made.T, strict=True)), "g": group})


def _expected(rows: pa.Table, count: int, score: np.ndarray, group: str | None) -> list[int]:
    frame = rows.to_pandas().assign(score=score)
    frame = frame.sort_values(["score", "id"], ascending=[False, True])
    if group:
        frame["rank"] = frame.groupby(group, dropna=False).cumcount()
        frame = frame.sort_values("rank", kind="stable")
    return frame["id"].tolist()[:count]


def test_measures_are_those_of_the_survey() -> None:
    made = np.random.default_rng(0).dirichlet([0.5] * 4, 50)
    made[0] = [1, 0, 0, 0]
    np.testing.assert_allclose(uncertainty(made, "entropy"), stats.entropy(made, axis=1))
    ordered = [sorted(row, reverse=True) for row in made.tolist()]
    np.testing.assert_allclose(uncertainty(made, "margin"), [1 - (r[0] - r[1]) for r in ordered])
    np.testing.assert_allclose(uncertainty(made, "least_confident"), [1 - r[0] for r in ordered])


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("group", [None, "g"])
def test_the_least_sure_are_picked_whatever_the_blocks(group: str | None) -> None:
    rows = _rows(210)
    score = stats.entropy(rows.select(NAMES).to_pandas().to_numpy(), axis=1).round(12)
    for blocks in (1, 4):
        picked = pick(Table.from_arrow(rows, -(-210 // blocks)), NAMES, 40, diverse=group)
        found = picked.to_arrow()
        assert found.column_names == [*rows.column_names, "uncertainty"]
        np.testing.assert_allclose(found["uncertainty"], score[found["id"].to_numpy()], atol=1e-9)
        assert found["id"].to_pylist() == _expected(rows, 40, score, group)


@pytest.mark.usefixtures("ray_cluster")
def test_more_than_there_are_gives_all() -> None:
    rows = _rows(9)
    found = pick(Table.from_arrow(rows, 4), NAMES, 100, by="margin", diverse="g").to_arrow()
    assert sorted(found["id"].to_pylist()) == list(range(9))


@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_picked_from_is_refused() -> None:
    table = Table.from_arrow(_rows(9))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (["p0"], {}, "at least 2 classes"),
        (["p0", "x"], {}, r"\['x'\] are no columns"),
        (NAMES, {"diverse": "h"}, r"\['h'\] are no columns"),
        (NAMES, {"by": "best"}, "by='best'"),
        (NAMES, {"rows": 0}, "rows=0"),
        (["p0", "p1"], {}, "no probabilities, the first"),
    ]
    for names, how, said in wrong:
        with pytest.raises(DataError, match=said):
            pick(table, names, **{"rows": 2, **how})
    with pytest.raises(DataError, match="has a column 'uncertainty' already"):
        pick(pick(table, NAMES, 2), NAMES, 2)


def test_picked_digits_teach_more_than_drawn_ones() -> None:
    """Mean over four starts: 20 labels, then five times 20 more."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    right: dict[str, list[list[float]]] = {"drawn": [], "picked": []}
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(x))
        pool, test = order[:1200], order[1200:]
        for way, curves in right.items():
            have, curve = pool[:20], []
            for _ in range(6):
                model = LogisticRegression(C=10, max_iter=300).fit(x[have], y[have])
                curve.append(float(model.score(x[test], y[test])))
                rest = np.setdiff1d(pool, have, assume_unique=True)
                if way == "picked":
                    score = uncertainty(model.predict_proba(x[rest]), "margin")
                    have = np.concatenate([have, rest[np.argsort(-score)[:20]]])
                else:
                    have = pool[: len(have) + 20]
            curves.append(curve)
    means = pd.DataFrame({way: np.mean(curves, axis=0) for way, curves in right.items()})
    assert means["picked"].iloc[0] == means["drawn"].iloc[0]
    assert means["picked"].iloc[-1] > means["drawn"].iloc[-1] + 0.015
    # 100 picked labels do more than 120 drawn ones.
    assert means["picked"].iloc[4] > means["drawn"].iloc[-1]


@pytest.mark.parametrize("group", [None, "g"])
def test_a_block_without_rows_gives_none(group: str | None) -> None:
    block = _rows(3).append_column("\x1frow", [np.arange(3)])
    empty = best_of_block(block.slice(0, 0), NAMES, 2, "entropy", group)
    assert empty.schema == best_of_block(block, NAMES, 2, "entropy", group).schema
    assert len(empty) == 0
