from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from raysys.data import Table
from raysys.errors import DataError
from raysys.labels import LabelModel, apply_labelers, labeler_report
from raysys.labels._labeler_report import report_of
from raysys.labels._labelers import codes_of
from tests.labels.example_votes import all_classes, patterns

TEXTS = [
    "please refund my order", "thanks a lot", "refund me now, thanks", "where is it", None,
    "broken, want my money back", "REFUND", "thank you, great",
]  # fmt: skip
GOLD = [1, 0, 1, None, None, 1, None, 0]
text = pl.col("text").str.to_lowercase()
LABELERS = {
    "asks_refund": pl.when(text.str.contains("refund")).then(1),
    "says_thanks": pl.when(text.str.contains("thank")).then(0),
    "money": pl.when(text.str.contains("money|broken")).then(pl.lit(1)),
    "is_long": text.str.len_chars() > 15,
}


@pytest.fixture(scope="module")
def table(ray_cluster: None) -> Table:
    return Table.from_arrow(pa.table({"text": TEXTS, "gold": pa.array(GOLD, pa.int64())}), 3)


def _python_votes() -> list[list[int | None]]:
    votes: list[list[int | None]] = []
    for original in TEXTS:
        lower = (original or "").lower()
        long = None if original is None else int(len(lower) > 15)
        votes.append(
            [
                1 if "refund" in lower else None,
                0 if "thank" in lower else None,
                1 if "money" in lower or "broken" in lower else None,
                long,
            ]
        )
    return votes


def test_votes_are_int8_and_null_abstains(table: Table) -> None:
    voted = apply_labelers(table, LABELERS)
    rows = voted.to_arrow()
    assert rows.column_names == ["text", "gold", *LABELERS]
    assert {rows.schema.field(name).type for name in LABELERS} == {pa.int8()}
    assert [list(row.values())[2:] for row in rows.to_pylist()] == _python_votes()


def test_report_fit_and_labels_do_not_depend_on_the_blocks(table: Table) -> None:
    voted = apply_labelers(table, LABELERS)
    one_block = apply_labelers(Table.from_arrow(table.to_arrow()), LABELERS)
    report = labeler_report(voted, LABELERS, gold="gold")
    assert report == labeler_report(one_block, LABELERS, gold="gold")
    thanks = report.labelers[1]
    assert (thanks.name, thanks.classes, thanks.coverage) == ("says_thanks", (0,), 3 / 8)
    assert (thanks.gold, thanks.accuracy) == (3, pytest.approx(2 / 3))
    assert report.coverage == 7 / 8
    fitted, again = (LabelModel(2).fit(votes, LABELERS) for votes in (voted, one_block))
    assert fitted.state() == again.state()
    labelled = fitted.predict(voted).to_arrow()
    assert labelled.equals(again.predict(one_block).to_arrow())
    assert labelled.column_names[-3:] == ["probability_0", "probability_1", "label"]
    assert labelled["label"].to_pylist()[4] is None
    assert labelled["label"].to_pylist()[0] == 1
    assert fitted.score(voted, "gold").rows == 5
    with pytest.raises(DataError, match=r"already has columns \['probability_0'"):
        fitted.predict(fitted.predict(voted))


def test_invalid_labelers_are_refused(table: Table) -> None:
    with pytest.raises(
        DataError, match=r"labelers \['text'\]: the table already has these columns"
    ):
        apply_labelers(table, {"text": pl.lit(1)})
    with pytest.raises(DataError, match=r"labeler a returns .*string.*: a vote is a class number"):
        apply_labelers(table, {"a": text})
    with pytest.raises(DataError, match="labeler a returns double"):
        apply_labelers(table, {"a": pl.lit(0.5)})
    with pytest.raises(DataError, match=r"labelers=\{\}: give at least one"):
        apply_labelers(table, {})
    with pytest.raises(DataError, match="no vote column 'a'"):
        LabelModel(2).fit(table, ["a"])
    with pytest.raises(DataError, match="text: votes are integers"):
        labeler_report(table, ["text"])
    for names, gold in ((["gold", "gold"], None), (["gold"], "gold")):
        with pytest.raises(DataError, match="without duplicates"):
            labeler_report(table, names, gold=gold)


def test_too_many_patterns_are_refused(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysys.labels._labelers.MAX_PATTERNS", 3)
    n_patterns = len({tuple(row) for row in _python_votes()})
    with pytest.raises(DataError, match=f"{n_patterns} different patterns of votes, more than 3"):
        labeler_report(apply_labelers(table, LABELERS), LABELERS)


@pytest.mark.parametrize(("value", "message"), [(-1, "x holds -1"), (200, "x holds 200")])
def test_votes_outside_the_classes_are_refused(value: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        codes_of(pa.table({"x": [0, value]}), ["x"])


def test_the_report_matches_a_loop_over_rows() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    votes = all_classes(y, [0.8, 0.6, 0.5], 3, 0.5, seed=1)
    gold = np.where(rng.random(300) < 0.2, y, -1)
    report = report_of(patterns(votes, gold))
    rows: list[Any] = votes.tolist()
    for number, summary in enumerate(report.labelers):
        mine = [
            (row[number], [v for n, v in enumerate(row) if n != number and v >= 0]) for row in rows
        ]
        voted = [(vote, others) for vote, others in mine if vote >= 0]
        assert summary.coverage == len(voted) / 300
        assert summary.overlap == sum(bool(others) for _, others in voted) / 300
        assert summary.conflict == sum(any(o != v for o in others) for v, others in voted) / 300
        correct = [
            row[number] == g for row, g in zip(rows, gold, strict=True) if g >= 0 <= row[number]
        ]
        assert (summary.gold, summary.accuracy) == (len(correct), sum(correct) / len(correct))
        assert summary.classes == (0, 1, 2)
    assert report.coverage == sum(any(v >= 0 for v in row) for row in rows) / 300
    assert str(report).splitlines()[0].split()[:3] == ["labeler", "classes", "coverage"]
    assert str(report).splitlines()[1].split()[:4] == ["labeler_0", "0", "1", "2"]
    assert str(report).endswith("of 300 rows have a vote")
