"""What each labeler does, before any of it is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.labels._labelers import SILENT, count_patterns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raysys.data import Table
    from raysys.labels._labelers import Patterns


@dataclass(frozen=True)
class LabelerFigures:
    """One labeler's figures; shares are of all rows.

    Attributes:
        name: The labeler.
        classes: Those that it votes for.
        coverage: Share of the rows on which it votes.
        overlap: Share on which another votes as well.
        conflict: Share on which another votes for another class.
        gold: Rows of known class on which it votes.
        accuracy: Share of these on which it is right; None without any.
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
    """What the labelers do, each and together; `print` shows it as a table.

    Attributes:
        rows: How many rows there are.
        coverage: Share of the rows on which any labeler votes.
        labelers: Figures of each.
    """

    rows: int
    coverage: float
    labelers: tuple[LabelerFigures, ...]

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [
            ("labeler", "classes", "coverage", "overlap", "conflict", "accuracy", "of gold")
        ]
        for one in self.labelers:
            shares = [f"{share:.3f}" for share in (one.coverage, one.overlap, one.conflict)]
            accuracy = "-" if one.accuracy is None else f"{one.accuracy:.3f}"
            classes = " ".join(map(str, one.classes)) or "-"
            table.append((one.name, classes, *shares, accuracy, str(one.gold)))
        widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join([*lines, f"{self.coverage:.1%} of {self.rows} rows have a vote"])


def labeler_report(
    votes: Table, labelers: Iterable[str], *, gold: str | None = None
) -> LabelerReport:
    """Say how often labelers vote, meet, contradict each other, and are right.

    Args:
        votes: What `apply_labelers` gives.
        labelers: Names of its columns of votes; the labelers' mapping will do.
        gold: A column of known classes, null where they are not known.

    Raises:
        DataError: A column is missing or holds no classes, or there are more than 100,000
            patterns of votes.
    """
    return report_of(count_patterns(votes, labelers, gold))


def report_of(patterns: Patterns) -> LabelerReport:
    """The report on counted patterns."""
    voted = patterns.votes != SILENT
    votes_a_row = voted.sum(axis=1)
    rows, gold = patterns.rows, patterns.gold
    whole = max(1, int(rows.sum()))
    found = []
    for number, name in enumerate(patterns.labelers):
        here, vote = voted[:, number], patterns.votes[:, number]
        against = (voted & (patterns.votes != vote[:, None])).any(axis=1)
        known = here & (gold != SILENT)
        checked = int(rows[known].sum())
        right = int(rows[known & (vote == gold)].sum())
        found.append(
            LabelerFigures(
                name,
                tuple(np.unique(vote[here]).tolist()),
                int(rows[here].sum()) / whole,
                int(rows[here & (votes_a_row > 1)].sum()) / whole,
                int(rows[here & against].sum()) / whole,
                checked,
                right / checked if checked else None,
            )
        )
    covered = int(rows[votes_a_row > 0].sum()) / whole
    return LabelerReport(int(rows.sum()), covered, tuple(found))
