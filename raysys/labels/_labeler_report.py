"""Coverage, overlap, conflict and accuracy of labelers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.arguments import checked
from raysys.console import text_table
from raysys.labels._labelers import ABSTAIN, count_patterns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raysys.data import Table
    from raysys.labels._labelers import VotePatterns


@dataclass(frozen=True)
class LabelerSummary:
    """Statistics of a labeler; shares are of all rows.

    Attributes:
        name: Name of the labeler.
        classes: Classes of its votes.
        coverage: Share of the rows with a vote.
        overlap: Share of the rows with a vote of another labeler too.
        conflict: Share of the rows with a different vote of another labeler.
        gold: Rows with a vote and a gold label.
        accuracy: Accuracy on these rows; None without any.
    """

    name: str
    classes: tuple[int, ...]
    coverage: float
    overlap: float
    conflict: float
    gold: int
    accuracy: float | None


@dataclass(frozen=True)
class LabelerReport:
    """Statistics of labelers; `print` shows them as a table.

    Attributes:
        rows: Number of rows.
        coverage: Share of the rows with any vote.
        labelers: Statistics of each labeler.
    """

    rows: int
    coverage: float
    labelers: tuple[LabelerSummary, ...]

    def __str__(self) -> str:
        columns = ["labeler", "classes", "coverage", "overlap", "conflict", "accuracy", "of gold"]
        rows = [
            (
                labeler.name,
                " ".join(map(str, labeler.classes)) or "-",
                *(f"{s:.3f}" for s in (labeler.coverage, labeler.overlap, labeler.conflict)),
                "-" if labeler.accuracy is None else f"{labeler.accuracy:.3f}",
                labeler.gold,
            )
            for labeler in self.labelers
        ]
        return f"{text_table(columns, rows)}\n{self.coverage:.1%} of {self.rows} rows have a vote"


@checked
def labeler_report(
    votes: Table, labelers: Iterable[str], *, gold: str | None = None
) -> LabelerReport:
    """Coverage, overlap, conflict and accuracy of labelers.

    Args:
        votes: Table from `apply_labelers`.
        labelers: Vote columns, or the mapping of labelers.
        gold: Column of gold labels, null where unknown.

    Raises:
        DataError: A column is missing or does not hold classes, or the votes have more than
            100,000 patterns.
    """
    return report_of(count_patterns(votes, labelers, gold))


def report_of(patterns: VotePatterns) -> LabelerReport:
    """Report on counted patterns."""
    voted = patterns.votes != ABSTAIN
    votes_a_row = voted.sum(axis=1)
    rows, gold = patterns.rows, patterns.gold
    total = max(1, int(rows.sum()))
    labelers = []
    for number, name in enumerate(patterns.labelers):
        covered, vote = voted[:, number], patterns.votes[:, number]
        conflicting = (voted & (patterns.votes != vote[:, None])).any(axis=1)
        scored = covered & (gold != ABSTAIN)
        checked = int(rows[scored].sum())
        right = int(rows[scored & (vote == gold)].sum())
        coverage, overlap, conflict = (
            int(rows[selected].sum()) / total
            for selected in (covered, covered & (votes_a_row > 1), covered & conflicting)
        )
        accuracy = right / checked if checked else None
        classes = tuple(np.unique(vote[covered]).tolist())
        labelers.append(
            LabelerSummary(name, classes, coverage, overlap, conflict, checked, accuracy)
        )
    coverage = int(rows[votes_a_row > 0].sum()) / total
    return LabelerReport(int(rows.sum()), coverage, tuple(labelers))
