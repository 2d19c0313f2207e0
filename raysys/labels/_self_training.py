"""Self-training: confident predictions become labels, round by round."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import ray

from raysys.arguments import checked
from raysys.data import Lineage, Splits, Table, class_counts
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # Probabilities of a block, float64 `(rows, classes)`, the classes ascending.
    Predictor = Callable[[pa.Table], np.ndarray]

WEIGHT, ROUND = "weight", "round"
_EVALUATION_SPLITS = ("test", "validation", "valid", "val", "dev", "eval", "evaluation", "holdout")


@dataclass(frozen=True)
class SelfTrainingRound:
    """A round of self-training.

    Attributes:
        number: Number, from 1.
        added: Number of newly labelled rows of each class.
        unlabelled: Number of rows that are still unlabelled.
    """

    number: int
    added: dict[Any, int]
    unlabelled: int


TerminationCondition = Literal["no_change", "all_labeled", "max_iter"]


@dataclass(frozen=True, repr=False)
class SelfTrainingResult:
    """Result of self-training, in scikit-learn's words.

    Attributes:
        table: Labelled and newly labelled rows, with `weight`, float64: 1, or the probability of
            a new label; and `round`, int16: 0, or the round of a new label.
        predictor: Predictor fitted on all of these rows.
        rounds: Rounds in their order.
        termination_condition: Reason of the end.
    """

    table: Table
    predictor: Predictor
    rounds: tuple[SelfTrainingRound, ...]
    termination_condition: TerminationCondition

    def __repr__(self) -> str:
        added = [sum(round_.added.values()) for round_ in self.rounds]
        return f"SelfTrainingResult({self.termination_condition}, rows added by round: {added})"


@checked
def self_train(
    fit: Callable[[Table], Predictor], labelled: Table | Splits, unlabelled: Table, *,
    label: str, threshold: float = 0.9, max_iter: int = 10,
) -> SelfTrainingResult:  # fmt: skip
    """Fit, label the rows of confident predictions, and fit again.

    As scikit-learn's `SelfTrainingClassifier` (after Yarowsky, "Unsupervised word sense
    disambiguation rivaling supervised methods", 1995): each round fits a model on the labelled
    rows; unlabelled rows with a probability above the threshold get their likeliest class as a
    permanent label. Rows are predicted and split in tasks.

    It helps where confident predictions are mostly right, and amplifies the errors of an
    overconfident model: compare the result with `fit(labelled)` on held-out rows.

    Args:
        fit: Function from a Table of labelled rows (with `weight` and `round`, which are not
            features) to a picklable function: probabilities of a block's rows, the classes
            ascending.
        labelled: Labelled rows; of Splits the training split.
        unlabelled: Rows with the same columns except the label.
        label: Label column.
        threshold: Probability in [0, 1) above which a prediction becomes a label.
        max_iter: Maximum number of rounds.

    Raises:
        DataError: The unlabelled rows have the label, lack a column or are of an evaluation
            split, or the predictor does not return probabilities.
    """
    if not 0 <= threshold < 1 or max_iter < 1:
        raise DataError(
            f"threshold={threshold}, max_iter={max_iter}: give a probability in [0, 1) and at "
            "least one round"
        )
    _refuse_evaluation(labelled, unlabelled)
    train = labelled.train if isinstance(labelled, Splits) else labelled
    features = _features(train, unlabelled, label)
    classes = list(class_counts(train, label))
    if len(classes) < 2:
        raise DataError(f"{label}: all labelled rows are of one class; label some of another")
    parts = [train.map_blocks(mark_labelled, name="self_train_labelled")]
    kind = train.schema.field(label).type
    remaining, rounds = unlabelled.select(features).materialize(), list[SelfTrainingRound]()
    while len(remaining) and len(rounds) < max_iter:
        predictor = fit(Table.concat(parts))
        added, remaining = remaining.split_blocks(
            split_block, ray.put(predictor), label, kind, classes, threshold, len(rounds) + 1,
            name="self_train",
        )  # fmt: skip
        by_class = Counter(class_counts(added, label) if len(added) else {})
        counts = {value: by_class[value] for value in classes}
        rounds.append(SelfTrainingRound(len(rounds) + 1, counts, len(remaining)))
        if not len(added):
            break
        parts.append(added.select(parts[0].schema.names))
    table = Table.concat(parts)
    added_rows = [round_.added for round_ in rounds]
    parameters = {"label": label, "threshold": threshold, "rounds": added_rows}
    lineage = Lineage("self_train", parameters, (train.lineage, unlabelled.lineage))
    table = Table(table.blocks(), table.metas(), lineage)
    condition: TerminationCondition = "max_iter"
    if not len(remaining):
        condition = "all_labeled"
    elif not any(rounds[-1].added.values()):
        condition = "no_change"
    return SelfTrainingResult(table, fit(table), tuple(rounds), condition)


def mark_labelled(block: pa.Table) -> pa.Table:
    """Labelled rows with weight 1 and round 0."""
    return _marked(block, np.ones(len(block)), 0)


def split_block(
    block: pa.Table, predictor: Predictor, label: str, kind: pa.DataType, classes: Sequence[Any],
    threshold: float, number: int,
) -> tuple[pa.Table, pa.Table]:  # fmt: skip
    """Newly labelled and still unlabelled rows of a block."""
    if not len(block):
        return mark_labelled(block.append_column(label, pa.array([], kind))), block
    probabilities = np.asarray(predictor(block), np.float64)
    expected = (len(block), len(classes))
    if probabilities.shape != expected or not np.isfinite(probabilities).all():
        raise DataError(
            f"the predictor returned shape {probabilities.shape} for {len(block)} rows and the "
            f"classes {list(classes)}: fit must return a function to finite probabilities of shape "
            f"{expected}"
        )
    likeliest, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confident = confidence > threshold
    labels = pa.array(list(classes), kind).take(pa.array(likeliest[confident]))
    added = block.filter(pa.array(confident)).append_column(label, labels)
    return _marked(added, confidence[confident], number), block.filter(pa.array(~confident))


def _marked(block: pa.Table, weights: np.ndarray, number: int) -> pa.Table:
    block = block.append_column(WEIGHT, pa.array(weights, pa.float64()))
    return block.append_column(ROUND, pa.array(np.full(len(block), number, np.int16)))


def _features(labelled: Table, unlabelled: Table, label: str) -> list[str]:
    names = labelled.schema.names
    if label not in names:
        raise DataError(f"the labelled rows have no column {label!r}; they have {names[:20]}")
    if duplicates := [name for name in (WEIGHT, ROUND) if name in names]:
        raise DataError(f"the labelled rows already have columns {duplicates}: rename or drop them")
    features = [name for name in names if name != label]
    if label in unlabelled.schema.names:
        raise DataError(
            f"the unlabelled rows have a column {label!r}: move labelled rows to the labelled "
            f"Table, and .select({features[:5]}{'...' * (len(features) > 5)}) of the unlabelled"
        )
    if missing := [name for name in features if name not in unlabelled.schema.names]:
        raise DataError(
            f"the unlabelled rows lack the columns {missing} of the labelled rows: drop them "
            "there, or add them"
        )
    return features


def _refuse_evaluation(labelled: Table | Splits, unlabelled: Table) -> None:
    """Refuse Tables whose lineage has an evaluation split.

    The evaluation of a model on rows that it was fitted on is meaningless, even if their labels
    were its own predictions.
    """
    splits: dict[str, str] = {}
    if isinstance(labelled, Splits):
        splits = {table.lineage.id: name for name, table in labelled.evaluation.items()}
    train = labelled.train if isinstance(labelled, Splits) else labelled
    for kind, table in (("labelled", train), ("unlabelled", unlabelled)):
        for lineage in table.lineage.chain():
            part = lineage.parameters.get("part")
            if lineage.id in splits or part in _EVALUATION_SPLITS:
                raise DataError(
                    f"the {kind} rows come from the split {splits.get(lineage.id, part)!r}: "
                    "a model fitted on them cannot be evaluated on them. Use rows of the training "
                    "split, or rows outside the splits"
                )
