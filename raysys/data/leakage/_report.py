"""What a leak check says: findings, from which figures on, and the report of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from raysys.errors import DataError

Kind = Literal[
    "shared rows", "time order", "fitted beyond training", "suspicious feature",
    "power lost", "unseen categories", "missing values", "distribution",
]  # fmt: skip


@dataclass(frozen=True)
class LeakLimits:
    """From which figures on a column is reported.

    Those of the population stability index are Siddiqi's ("Credit risk scorecards", 2006): under
    0.1 little has changed, over 0.25 much. The others are of this project.

    Attributes:
        area: Area under the ROC curve by one column alone, for a label of classes.
        explained: Share of the variance explained by one column alone, for a number as label.
        lost: How much of either an evaluation split may lose.
        unseen: Share of the rows with a category that the training split lacks.
        missing: Difference between the shares of missing values.
        distance: Kolmogorov-Smirnov distance between the distributions of numbers.
        stability: Population stability index of categories.
    """

    area: float = 0.95
    explained: float = 0.9
    lost: float = 0.1
    unseen: float = 0.01
    missing: float = 0.1
    distance: float = 0.2
    stability: float = 0.25


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: What kind of thing.
        certain: Whether it is a leak whatever the data mean; else it is a suspicion.
        subject: The column or object that it is about, or "rows".
        splits: The splits that it is about.
        figure: How large it is, in the unit that `fact` names.
        fact: What was found.
        remedy: What to do.
    """

    kind: Kind
    certain: bool
    subject: str
    splits: tuple[str, ...]
    figure: float
    fact: str
    remedy: str


@dataclass(frozen=True)
class LeakReport:
    """What was looked for and what was found.

    Attributes:
        findings: Leaks first, then suspicions, the largest of a kind first.
        checked: What was looked for, one sentence each; also what could not be.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Those that are certain."""
        return tuple(found for found in self.findings if found.certain)

    def require(self, *, suspicions: bool = False) -> LeakReport:
        """The report itself, if it holds no leak.

        Args:
            suspicions: Whether a suspicion is refused as well.

        Raises:
            DataError: It does.
        """
        refused = self.findings if suspicions else self.leaks
        if refused:
            lines = "".join(f"\n- {found.fact}. {found.remedy}" for found in refused)
            raise DataError(f"the splits leak into each other:{lines}")
        return self

    def to_json(self) -> str:
        """The report as JSON, for run records."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __str__(self) -> str:
        rows = [("", "what", "about", "figure", "fact")]
        rows += [
            ("LEAK" if f.certain else "?", f.kind, f.subject, f"{f.figure:.4g}", f.fact)
            for f in self.findings
        ]
        widths = [max(len(row[n]) for row in rows) for n in range(4)]
        lines = ["  ".join([*map(str.ljust, row, widths), row[4]]).rstrip() for row in rows]
        if not self.findings:
            lines = ["no leak was found"]
        return "\n".join([*lines, *(f"checked: {sentence}" for sentence in self.checked)])
