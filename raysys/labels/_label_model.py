"""Label model: accuracies of labelers, and labels from their votes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.arguments import checked
from raysys.errors import DataError
from raysys.labels import _expectation_maximization as _em
from raysys.labels._labelers import ABSTAIN, check_classes, check_columns, codes_of, count_patterns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from raysys.data import Table
    from raysys.labels._labelers import VotePatterns

_FORMAT = 2
LABEL = "label"


@dataclass(frozen=True)
class LabelModel:
    """A generative model of votes that needs no gold labels.

    It assumes that labelers vote independently given the class, and that most are better than
    chance. Near copies of a labeler count twice, and where many labelers vote for a reason other
    than the class (long texts), the model can be worse than a majority vote: compare them on a few
    gold labels with `FittedLabelModel.score`.

    Attributes:
        classes: Number of classes, 2 to 127; votes are class numbers from 0.
        kind: Parameters of a labeler. "confusions": probabilities of abstaining and of each vote
            for each true class; needs thousands of rows. "accuracies": accuracy of its votes, with
            uninformative abstentions; needs hundreds of rows, and labelers that vote for several
            classes each.
        balance: Known share of each class; estimated by default.

    Example:
        fitted = LabelModel(classes=2).fit(votes, labelers)
        labelled = fitted.predict(votes)
    """

    classes: int
    kind: _em.Kind = "confusions"
    balance: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 127:
            raise DataError(f"classes={self.classes}: expected 2 to 127")
        if self.kind not in ("accuracies", "confusions"):
            raise DataError(f"kind={self.kind!r}: use 'accuracies' or 'confusions'")
        balance = self.balance
        if balance is not None and (
            len(balance) != self.classes or min(balance) <= 0 or abs(sum(balance) - 1) > 1e-6
        ):
            raise DataError(
                f"balance={list(balance)}: give the share of each of the {self.classes} classes, "
                "above 0 and of sum 1"
            )

    @checked
    def fit(self, votes: Table, labelers: Iterable[str]) -> FittedLabelModel:
        """Fit to votes: patterns are counted in tasks, the model is fitted in this process.

        Args:
            votes: Table from `apply_labelers`.
            labelers: Vote columns, or the mapping of labelers.

        Raises:
            DataError: No row has a vote, a vote is not a class, the votes have more than 100,000
                patterns, or a labeler votes for one class only with kind="accuracies".
        """
        return self.fit_patterns(count_patterns(votes, labelers))

    def fit_patterns(self, patterns: VotePatterns) -> FittedLabelModel:
        """Fit to counted patterns."""
        check_classes(patterns.labelers, patterns.votes, self.classes)
        covered = (patterns.votes != ABSTAIN).any(axis=1)
        if not covered.any():
            raise DataError(
                f"none of the labelers {list(patterns.labelers)} votes on any row: check their "
                "expressions"
            )
        if self.kind == "accuracies":
            # The likelihood of labelers of one class is largest where all rows have that class.
            for name, column in zip(patterns.labelers, patterns.votes.T, strict=True):
                if len(voted := np.unique(column[column != ABSTAIN])) == 1:
                    raise DataError(
                        f"labeler {name} votes for class {voted[0]} only, which kind='accuracies' "
                        "cannot model: use kind='confusions'"
                    )
        # Abstentions are uninformative with accuracies: these rows would only cost time.
        used = covered if self.kind == "accuracies" else np.ones_like(covered)
        balance = None if self.balance is None else np.array(self.balance, np.float64)
        votes, rows = patterns.votes[used], patterns.rows[used]
        estimate = _em.estimate(votes, rows, self.kind, self.classes, balance)
        return FittedLabelModel(patterns.labelers, *estimate)


@dataclass(frozen=True)
class LabelModelScore:
    """Accuracy on the rows with a gold label and a vote.

    Attributes:
        rows: Number of these rows.
        label_model: Accuracy of the label model.
        majority_vote: Expected accuracy of a majority vote with ties broken at random.
    """

    rows: int
    label_model: float
    majority_vote: float


@dataclass(frozen=True, eq=False)
class FittedLabelModel:
    """A fitted label model.

    Attributes:
        labelers: Names of the vote columns.
        balance: float64 `(classes,)`, share of each class.
        vote_probabilities: float64 `(labelers, classes, classes + 1)`: probability of abstaining,
            then of a vote for each class, by labeler and true class.
        n_iter: Iterations of EM.
        converged: Whether EM converged.
    """

    labelers: tuple[str, ...]
    balance: np.ndarray
    vote_probabilities: np.ndarray
    n_iter: int
    converged: bool

    def __repr__(self) -> str:
        accuracies = ", ".join(f"{name} {value:.2f}" for name, value in self.accuracies.items())
        return f"FittedLabelModel(accuracies: {accuracies}; balance: {self.balance.round(2)})"

    @functools.cached_property
    def accuracies(self) -> dict[str, float]:
        """Estimated accuracy of each labeler's votes."""
        joint = self.vote_probabilities * self.balance[:, None]
        right = np.trace(joint[:, :, 1:], axis1=1, axis2=2)
        voted = joint[:, :, 1:].sum(axis=(1, 2))
        return dict(zip(self.labelers, (right / voted).tolist(), strict=True))

    @property
    def columns(self) -> list[str]:
        """Probability columns of `predict`."""
        return [f"probability_{number}" for number in range(len(self.balance))]

    @checked
    def predict(self, votes: Table) -> Table:
        """Add probabilities and labels.

        Returns:
            The table with `probability_0` and so on, float64, and `label`, int8: the likeliest
            class, null where no labeler votes or two classes tie. Rows without votes have the
            probabilities of abstentions alone.

        Raises:
            DataError: A vote column is missing, or the table has a column of these names.
        """
        check_columns(votes, self.labelers)
        if duplicates := [name for name in (*self.columns, LABEL) if name in votes.schema.names]:
            raise DataError(f"the table already has columns {duplicates}: rename or drop them")
        return votes.map_blocks(predict_block, self, name="predict_labels")

    @checked
    def score(self, votes: Table, gold: str) -> LabelModelScore:
        """Accuracy of the labels, and of a majority vote, on gold labels.

        Args:
            votes: Table from `apply_labelers`.
            gold: Column of gold labels, null where unknown.

        Raises:
            DataError: A column is missing, or no row with a vote has a gold label.
        """
        return score_patterns(count_patterns(votes, self.labelers, gold), self)

    def state(self) -> dict[str, Any]:
        """The model as JSON values."""
        return {
            "format": _FORMAT, "labelers": list(self.labelers), "balance": self.balance.tolist(),
            "vote_probabilities": self.vote_probabilities.tolist(), "n_iter": self.n_iter,
            "converged": self.converged,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FittedLabelModel:
        """The model of a `state`.

        Raises:
            DataError: The state has another format.
        """
        if state.get("format") != _FORMAT:
            raise DataError(
                f"the label model's state has format {state.get('format')}, this release reads "
                f"{_FORMAT}: fit the model again"
            )
        balance, votes = np.array(state["balance"]), np.array(state["vote_probabilities"])
        labelers = tuple(state["labelers"])
        return cls(labelers, balance, votes, state["n_iter"], state["converged"])


def predict_block(block: pa.Table, fitted: FittedLabelModel) -> pa.Table:
    """A block with probabilities and labels."""
    votes = codes_of(block, fitted.labelers)
    check_classes(fitted.labelers, votes, len(fitted.balance))
    probabilities = _em.probabilities(votes, fitted.balance, fitted.vote_probabilities)
    for name, column in zip(fitted.columns, probabilities.T, strict=True):
        block = block.append_column(name, pa.array(np.ascontiguousarray(column)))
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    # Ties up to rounding: sums of the same logarithms in another order.
    tied = (votes == ABSTAIN).all(axis=1) | (first - second < 1e-12)
    labels = probabilities.argmax(axis=1).astype(np.int8)
    return block.append_column(LABEL, pa.array(labels, mask=tied))


def score_patterns(patterns: VotePatterns, fitted: FittedLabelModel) -> LabelModelScore:
    """Score on counted patterns."""
    classes = len(fitted.balance)
    check_classes(patterns.labelers, patterns.votes, classes)
    scored = (patterns.gold != ABSTAIN) & (patterns.votes != ABSTAIN).any(axis=1)
    votes, gold, rows = patterns.votes[scored], patterns.gold[scored], patterns.rows[scored]
    if not scored.any():
        raise DataError("no row with a vote has a gold label: label a few of them by hand")
    chosen = _em.probabilities(votes, fitted.balance, fitted.vote_probabilities).argmax(axis=1)
    votes_for = (votes[:, :, None] == np.arange(classes)).sum(axis=1)
    first = votes_for == votes_for.max(axis=1, keepdims=True)
    majority = (first & (gold[:, None] == np.arange(classes))).any(axis=1) / first.sum(axis=1)
    total = int(rows.sum())
    right = int(rows[chosen == gold].sum())
    return LabelModelScore(total, right / total, float(rows @ majority) / total)
