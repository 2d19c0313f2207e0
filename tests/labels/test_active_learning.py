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
from raysys.labels import select_for_labeling
from raysys.labels._active_learning import select_in_block, uncertainty

NAMES = ["p0", "p1", "p2"]


def _rows(count: int, seed: int = 0) -> pa.Table:
    """Rows with probabilities, many of them equal, and groups of different sizes."""
    rng = np.random.default_rng(seed)
    probabilities = rng.multinomial(8, [0.5, 0.3, 0.2], count) / 8
    group = rng.choice(["a", "b", "c", None], count, p=[0.7, 0.2, 0.07, 0.03])
    return pa.table(
        {"id": np.arange(count), **dict(zip(NAMES, probabilities.T, strict=True)), "g": group}
    )


def _expected(rows: pa.Table, count: int, score: np.ndarray, group: str | None) -> list[int]:
    frame = rows.to_pandas().assign(score=score)
    frame = frame.sort_values(["score", "id"], ascending=[False, True])
    if group:
        frame["rank"] = frame.groupby(group, dropna=False).cumcount()
        frame = frame.sort_values("rank", kind="stable")
    return frame["id"].tolist()[:count]


def test_uncertainties_match_their_definitions() -> None:
    rows = np.random.default_rng(0).dirichlet([0.5] * 4, 50)
    rows[0] = [1, 0, 0, 0]
    np.testing.assert_allclose(uncertainty(rows, "entropy"), stats.entropy(rows, axis=1))
    ordered = [sorted(row, reverse=True) for row in rows.tolist()]
    np.testing.assert_allclose(uncertainty(rows, "margin"), [1 - (r[0] - r[1]) for r in ordered])
    np.testing.assert_allclose(uncertainty(rows, "least_confidence"), [1 - r[0] for r in ordered])


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("group", [None, "g"])
def test_the_selection_does_not_depend_on_the_blocks(group: str | None) -> None:
    rows = _rows(210)
    score = stats.entropy(rows.select(NAMES).to_pandas().to_numpy(), axis=1).round(12)
    for blocks in (1, 4):
        selected = select_for_labeling(
            Table.from_arrow(rows, -(-210 // blocks)), NAMES, 40, balance_by=group
        )
        result = selected.to_arrow()
        assert result.column_names == [*rows.column_names, "uncertainty"]
        np.testing.assert_allclose(result["uncertainty"], score[result["id"].to_numpy()], atol=1e-9)
        assert result["id"].to_pylist() == _expected(rows, 40, score, group)


@pytest.mark.usefixtures("ray_cluster")
def test_a_large_n_rows_selects_all_rows() -> None:
    rows = _rows(9)
    result = select_for_labeling(
        Table.from_arrow(rows, 4), NAMES, 100, strategy="margin", balance_by="g"
    ).to_arrow()
    assert sorted(result["id"].to_pylist()) == list(range(9))


@pytest.mark.usefixtures("ray_cluster")
def test_invalid_arguments_are_refused() -> None:
    table = Table.from_arrow(_rows(9))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (["p0"], {}, "at least 2 classes"),
        (["p0", "x"], {}, r"no such column: \['x'\]"),
        (NAMES, {"balance_by": "h"}, r"no such column: \['h'\]"),
        (NAMES, {"strategy": "best"}, "strategy='best'"),
        (NAMES, {"n_rows": 0}, "n_rows=0"),
        (["p0", "p1"], {}, "invalid probabilities, the first"),
    ]
    for names, options, message in wrong:
        with pytest.raises(DataError, match=message):
            select_for_labeling(table, names, **{"n_rows": 2, **options})
    with pytest.raises(DataError, match="already has a column 'uncertainty'"):
        select_for_labeling(select_for_labeling(table, NAMES, 2), NAMES, 2)


def test_margin_sampling_needs_fewer_labels_than_random_sampling() -> None:
    """Mean over four starts: 20 labels, then five times 20 more."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    accuracies: dict[str, list[list[float]]] = {"random": [], "margin sampling": []}
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(x))
        pool, test = order[:1200], order[1200:]
        for strategy, curves in accuracies.items():
            have, curve = pool[:20], []
            for _ in range(6):
                model = LogisticRegression(C=10, max_iter=300).fit(x[have], y[have])
                curve.append(float(model.score(x[test], y[test])))
                unlabelled = np.setdiff1d(pool, have, assume_unique=True)
                if strategy == "margin sampling":
                    score = uncertainty(model.predict_proba(x[unlabelled]), "margin")
                    have = np.concatenate([have, unlabelled[np.argsort(-score)[:20]]])
                else:
                    have = pool[: len(have) + 20]
            curves.append(curve)
    means = pd.DataFrame(
        {strategy: np.mean(curves, axis=0) for strategy, curves in accuracies.items()}
    )
    assert means["margin sampling"].iloc[0] == means["random"].iloc[0]
    assert means["margin sampling"].iloc[-1] > means["random"].iloc[-1] + 0.015
    # 100 selected labels are better than 120 random ones.
    assert means["margin sampling"].iloc[4] > means["random"].iloc[-1]


@pytest.mark.parametrize("group", [None, "g"])
def test_an_empty_block_selects_no_rows(group: str | None) -> None:
    block = _rows(3).append_column("\x1frow", [np.arange(3)])
    empty = select_in_block(block.slice(0, 0), NAMES, 2, "entropy", group)
    assert empty.schema == select_in_block(block, NAMES, 2, "entropy", group).schema
    assert len(empty) == 0
