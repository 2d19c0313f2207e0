"""Findings of a leak check, their thresholds, and the report."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from raysys.arguments import checked
from raysys.console import html_table, text_table
from raysys.errors import DataError

Kind = Literal[
    "shared rows", "time order", "fitted beyond training", "suspicious feature",
    "power loss", "unseen categories", "missing values", "distribution",
]  # fmt: skip
_COLUMNS = ["", "kind", "subject", "value", "fact"]


@checked
@dataclass(frozen=True)
class LeakLimits:
    """Thresholds above which a column is reported.

    The threshold of the population stability index is Siddiqi's ("Credit risk scorecards", 2006):
    below 0.1 the change is small, above 0.25 large.

    Attributes:
        roc_auc: Area under the ROC curve of one column alone, for a label of classes.
        explained_variance: Variance explained by one column alone, for a numeric label.
        power_loss: Loss of either in an evaluation split.
        unseen_fraction: Fraction of the rows with a category that the training split lacks.
        missing_difference: Difference between the fractions of missing values.
        ks_distance: Kolmogorov-Smirnov distance between the distributions of numbers.
        psi: Population stability index of categories.
    """

    roc_auc: float = 0.95
    explained_variance: float = 0.9
    power_loss: float = 0.1
    unseen_fraction: float = 0.01
    missing_difference: float = 0.1
    ks_distance: float = 0.2
    psi: float = 0.25


@dataclass(frozen=True)
class LeakFinding:
    """A leak or a suspicion.

    Attributes:
        kind: Kind of the finding.
        certain: Whether it is a leak for any meaning of the data; else it is a suspicion.
        subject: The column or object concerned, or "rows".
        splits: The splits concerned.
        value: Size, in the unit that `fact` names.
        fact: Description with numbers.
        remedy: Suggested action.
    """

    kind: Kind
    certain: bool
    subject: str
    splits: tuple[str, ...]
    value: float
    fact: str
    remedy: str


@dataclass(frozen=True, repr=False)
class LeakReport:
    """Findings of a leak check.

    Attributes:
        findings: Leaks first, then suspicions, the largest of a kind first.
        checks: Descriptions of the checks that ran, and of those that could not.
    """

    findings: tuple[LeakFinding, ...]
    checks: tuple[str, ...]

    @property
    def leaks(self) -> tuple[LeakFinding, ...]:
        """The findings that are certain."""
        return tuple(finding for finding in self.findings if finding.certain)

    def require(self, *, suspicions: bool = False) -> LeakReport:
        """This report if it has no leak.

        Args:
            suspicions: Whether to refuse suspicions as well.

        Raises:
            DataError: There is a leak; the message has the facts and remedies.
        """
        refused = self.findings if suspicions else self.leaks
        if refused:
            lines = "".join(f"\n- {finding.fact}. {finding.remedy}" for finding in refused)
            raise DataError(f"the splits leak into each other:{lines}")
        return self

    def to_json(self) -> str:
        """The report as JSON, for run records."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __repr__(self) -> str:
        suspicions = len(self.findings) - len(self.leaks)
        return f"<LeakReport {len(self.leaks)} leaks, {suspicions} suspicions>"

    def __str__(self) -> str:
        table = text_table(_COLUMNS, self._rows()) if self.findings else "no leaks"
        return "\n".join([table, *(f"checked: {check}" for check in self.checks)])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows())

    def _rows(self) -> list[list[str]]:
        return [
            ["LEAK" if f.certain else "?", f.kind, f.subject, f"{f.value:.4g}", f.fact]
            for f in self.findings
        ]
