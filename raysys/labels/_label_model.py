"""The label model: how far each labeler can be trusted, and what the votes say together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.errors import DataError
from raysys.labels import _expectation_maximization as _em
from raysys.labels._labelers import SILENT, check_classes, check_columns, codes_of, count_patterns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from raysys.data import Table
    from raysys.labels._labelers import Patterns

_FORMAT = 1
LABEL = "label"


@dataclass(frozen=True)
class LabelModel:
    """Weighs labelers by how they agree with each other; needs no known class.

    Labelers are taken to answer independently given the class, and most to be better than chance.
    Two that are near copies of each other count twice, and where many speak up for a reason that
    is not the class (long texts), the model can take that reason for the class and be worse than
    a majority vote: `FittedLabelModel.score` tells, on a few rows of known class.

    Attributes:
        classes: How many there are, 2 to 127; votes are their numbers from 0 on.
        kind: What is learned of a labeler. "confusions": for each true class, how often it is
            silent and how often it votes for which class; wants rows by the thousands.
            "accuracies": one figure, how often it is right where it votes, silence saying
            nothing; does with hundreds of rows, of labelers that vote for several classes each.
        balance: The share of each class, where it is known; estimated otherwise.

    Example:
        >>> fitted = LabelModel(classes=2).fit(votes, labelers)  # doctest: +SKIP
        >>> fitted.accuracies  # doctest: +SKIP
        >>> labelled = fitted.predict(votes)  # doctest: +SKIP
    """

    classes: int
    kind: _em.Kind = "confusions"
    balance: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 127:
            raise DataError(f"classes={self.classes}: give 2 to 127")
        if self.kind not in ("accuracies", "confusions"):
            raise DataError(f"kind={self.kind!r}: give 'accuracies' or 'confusions'")
        given = self.balance
        if given is not None and (
            len(given) != self.classes or min(given) <= 0 or abs(sum(given) - 1) > 1e-6
        ):
            raise DataError(
                f"balance={list(given)}: give the share of each of the {self.classes} classes, "
                "over 0 and of sum 1"
            )

    def fit(self, votes: Table, labelers: Iterable[str]) -> FittedLabelModel:
        """Learn from votes: patterns are counted in tasks, and weighed in this process.

        Args:
            votes: What `apply_labelers` gives.
            labelers: Names of its columns of votes; the labelers' mapping will do.

        Raises:
            DataError: No row has a vote, a vote is for no class, there are more than 100,000
                patterns of votes, or labelers vote for one class only and accuracies are asked.
        """
        return self.fit_patterns(count_patterns(votes, labelers))

    def fit_patterns(self, patterns: Patterns) -> FittedLabelModel:
        """Learn from counted patterns."""
        check_classes(patterns.labelers, patterns.votes, self.classes)
        covered = (patterns.votes != SILENT).any(axis=1)
        if not covered.any():
            raise DataError(
                f"none of the labelers {list(patterns.labelers)} votes on any row: look at the "
                "rows that they should know"
            )
        if self.kind == "accuracies":
            _refuse_one_sided(patterns)
        # Silence says nothing in the model of accuracies: these rows would only slow it down.
        used = covered if self.kind == "accuracies" else np.ones_like(covered)
        balance = None if self.balance is None else np.array(self.balance, np.float64)
        rows = patterns.rows[used]
        found = _em.estimate(patterns.votes[used], rows, self.kind, self.classes, balance)
        return FittedLabelModel(
            patterns.labelers, found.balance, found.answers, found.rounds, found.converged
        )


@dataclass(frozen=True)
class Score:
    """How often labels are right, of the rows of known class that have a vote.

    Attributes:
        rows: How many such rows there are.
        label_model: Share of them on which the label model is right.
        majority: Share on which a majority vote is, ties counting as far as a guess would.
    """

    rows: int
    label_model: float
    majority: float


@dataclass(frozen=True, eq=False)
class FittedLabelModel:
    """What a label model has learned.

    Attributes:
        labelers: Names of the columns of votes.
        balance: float64 `(classes,)`, the share of each class.
        answers: float64 `(labelers, classes, classes + 1)`: of a labeler and a true class, the
            likelihood of silence, then of a vote for each class.
        rounds: How many the estimation took.
        converged: Whether it came to rest.
    """

    labelers: tuple[str, ...]
    balance: np.ndarray
    answers: np.ndarray
    rounds: int
    converged: bool

    @functools.cached_property
    def accuracies(self) -> dict[str, float]:
        """How often each labeler is right where it votes, as estimated."""
        joint = self.answers * self.balance[:, None]
        right = np.trace(joint[:, :, 1:], axis1=1, axis2=2)
        voted = joint[:, :, 1:].sum(axis=(1, 2))
        return dict(zip(self.labelers, (right / voted).tolist(), strict=True))

    @property
    def columns(self) -> list[str]:
        """Names of the columns of probabilities that `predict` adds."""
        return [f"probability_{number}" for number in range(len(self.balance))]

    def predict(self, votes: Table) -> Table:
        """Add what the votes say together.

        Returns:
            The table with `probability_0` and so on, float64, and `label`, int8: the likeliest
            class, null where no labeler votes or the first two are equal. Of a row without votes
            the probabilities are what the model knows without them.

        Raises:
            DataError: A column of votes is missing, or one of these names is taken.
        """
        check_columns(votes, self.labelers)
        if taken := [name for name in (*self.columns, LABEL) if name in votes.schema.names]:
            raise DataError(f"the table has columns {taken} already: rename or leave them out")
        return votes.map_blocks(predict_block, self, name="predict_labels")

    def score(self, votes: Table, gold: str) -> Score:
        """Compare the labels, and those of a majority vote, with known classes.

        Args:
            votes: What `apply_labelers` gives.
            gold: A column of known classes, null where they are not known.

        Raises:
            DataError: A column is missing, or no row that has a vote is of known class.
        """
        return score_patterns(count_patterns(votes, self.labelers, gold), self)

    def state(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        return {
            "format": _FORMAT,
            "labelers": list(self.labelers),
            "balance": self.balance.tolist(),
            "answers": self.answers.tolist(),
            "rounds": self.rounds,
            "converged": self.converged,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FittedLabelModel:
        """The model that `state` tells of.

        Raises:
            DataError: It is of another format.
        """
        if state.get("format") != _FORMAT:
            raise DataError(
                f"the label model's state has format {state.get('format')}, this raysys reads "
                f"{_FORMAT}: fit it again"
            )
        balance, answers = np.array(state["balance"]), np.array(state["answers"])
        labelers = tuple(state["labelers"])
        return cls(labelers, balance, answers, state["rounds"], state["converged"])


def predict_block(block: pa.Table, fitted: FittedLabelModel) -> pa.Table:
    """A block with probabilities and labels."""
    votes = codes_of(block, fitted.labelers)
    check_classes(fitted.labelers, votes, len(fitted.balance))
    made = _em.probabilities(votes, fitted.balance, fitted.answers)
    for name, column in zip(fitted.columns, made.T, strict=True):
        block = block.append_column(name, pa.array(np.ascontiguousarray(column)))
    second, first = np.sort(made, axis=1)[:, -2:].T
    # Equal up to rounding: sums of the same logarithms in another order.
    unsure = (votes == SILENT).all(axis=1) | (first - second < 1e-12)
    return block.append_column(LABEL, pa.array(made.argmax(axis=1).astype(np.int8), mask=unsure))


def score_patterns(patterns: Patterns, fitted: FittedLabelModel) -> Score:
    """The score on counted patterns."""
    classes = len(fitted.balance)
    check_classes(patterns.labelers, patterns.votes, classes)
    known = (patterns.gold != SILENT) & (patterns.votes != SILENT).any(axis=1)
    votes, gold, rows = patterns.votes[known], patterns.gold[known], patterns.rows[known]
    if not known.any():
        raise DataError("no row that has a vote is of known class: label a few of them by hand")
    chosen = _em.probabilities(votes, fitted.balance, fitted.answers).argmax(axis=1)
    votes_for = (votes[:, :, None] == np.arange(classes)).sum(axis=1)
    first = votes_for == votes_for.max(axis=1, keepdims=True)
    guessed = (first & (gold[:, None] == np.arange(classes))).any(axis=1) / first.sum(axis=1)
    whole = int(rows.sum())
    right = int(rows[chosen == gold].sum())
    return Score(whole, right / whole, float(rows @ guessed) / whole)


def _refuse_one_sided(patterns: Patterns) -> None:
    """Refuse labelers of one class: their accuracies fit best where all rows are of that class."""
    for name, column in zip(patterns.labelers, patterns.votes.T, strict=True):
        if len(voted := np.unique(column[column != SILENT])) == 1:
            raise DataError(
                f"labeler {name} votes for class {voted[0]} only, which kind='accuracies' cannot "
                "weigh: use kind='confusions'"
            )
