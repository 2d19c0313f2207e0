"""Self-training: a model's own sure answers become labels, round by round."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import ray

from raysys.data import Lineage, Splits, Table, class_counts
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # Of a block, float64 `(rows, classes)`, the classes in the order of their values.
    Predictor = Callable[[pa.Table], np.ndarray]

WEIGHT, ROUND = "weight", "round"
_EVALUATION = ("test", "validation", "valid", "val", "dev", "eval", "evaluation", "holdout")


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: From 1.
        added: Rows of each class that got a label, by the class.
        left: Rows that are still without one.
    """

    number: int
    added: dict[Any, int]
    left: int


@dataclass(frozen=True)
class SelfTrained:
    """What self-training made.

    Attributes:
        table: The labelled rows and those that got a label, with `weight`, float64: 1 for a
            given label, else the probability when it was taken; and `round`, int16: 0 for a given
            label.
        predictor: What the last fit gave, on all of these rows.
        rounds: The rounds in their order.
        stopped: Why: no row was over the threshold, all are labelled, or the rounds are over.
    """

    table: Table
    predictor: Predictor
    rounds: tuple[Round, ...]
    stopped: Literal["none over the threshold", "all labelled", "rounds over"]


def self_train(
    fit: Callable[[Table], Predictor],
    labelled: Table | Splits,
    unlabelled: Table,
    *,
    label: str,
    threshold: float = 0.9,
    rounds: int = 10,
) -> SelfTrained:
    """Fit, label what the model is sure of, and fit again.

    The rules are those of scikit-learn's `SelfTrainingClassifier` (after Yarowsky, "Unsupervised
    word sense disambiguation rivaling supervised methods", 1995): in each round a model is fitted
    on what has a label; rows whose likeliest class is over the threshold get it as their label and
    keep it. Rows are predicted and dealt out in tasks.

    It helps where a sure answer is mostly right, and strengthens the errors of a model that is
    sure without reason: compare the result with `fit(labelled)` on rows held out.

    Args:
        fit: Takes a Table of labelled rows (with `weight` and `round`, which are no features) and
            gives a function that a task can be sent: of a block, the probability of each class,
            the classes in the order of their values.
        labelled: Rows with a label; of Splits the training split.
        unlabelled: Rows with the same columns but the label's.
        label: The column of classes.
        threshold: In [0, 1); a probability must be over it.
        rounds: The most that are done.

    Raises:
        DataError: The unlabelled rows have the label or lack a column, are of an evaluation
            split, or what `fit` gives does not give probabilities.
    """
    if not 0 <= threshold < 1 or rounds < 1:
        raise DataError(
            f"threshold={threshold}, rounds={rounds}: give a probability in [0, 1) and at least "
            "one round"
        )
    _refuse_evaluation(labelled, unlabelled)
    given = labelled.train if isinstance(labelled, Splits) else labelled
    features = _features(given, unlabelled, label)
    classes = list(class_counts(given, label))
    if len(classes) < 2:
        raise DataError(f"{label}: all labelled rows are of one class; label some of another")
    parts = [given.map_blocks(as_given, name="self_train_given")]
    kind = given.schema.field(label).type
    left, done = unlabelled.select(features).materialize(), list[Round]()
    while len(left) and len(done) < rounds:
        predictor = fit(Table.concat(parts))
        added, left = left.split_blocks(
            deal, ray.put(predictor), label, kind, classes, threshold, len(done) + 1,
            name="self_train",
        )  # fmt: skip
        by_class = Counter[Any]()
        if len(added):
            by_class.update(class_counts(added, label))
            parts.append(added.select(parts[0].schema.names))
        done.append(Round(len(done) + 1, {one: by_class[one] for one in classes}, len(left)))
        if not len(added):
            break
    whole = Table.concat(parts)
    said = {"label": label, "threshold": threshold, "rounds": [one.added for one in done]}
    lineage = Lineage("self_train", said, (given.lineage, unlabelled.lineage))
    whole = Table(whole.blocks(), whole.metas(), lineage)
    stopped = _why(done, left)
    return SelfTrained(whole, fit(whole), tuple(done), stopped)


def as_given(block: pa.Table) -> pa.Table:
    """Labelled rows with their weight and round."""
    return _marked(block, np.ones(len(block)), 0)


def deal(
    block: pa.Table,
    predictor: Predictor,
    label: str,
    kind: pa.DataType,
    classes: Sequence[Any],
    threshold: float,
    number: int,
) -> tuple[pa.Table, pa.Table]:
    """Rows that get a label in this round, and those that do not."""
    if not len(block):
        empty = block.append_column(label, pa.array([], kind))
        return as_given(empty), block
    made = np.asarray(predictor(block), np.float64)
    if made.shape != (len(block), len(classes)) or not np.isfinite(made).all():
        raise DataError(
            f"the predictor that fit gave must give finite probabilities of shape "
            f"{(len(block), len(classes))} for {len(block)} rows and the classes {list(classes)}; "
            f"it gave {made.shape}"
        )
    best = made.argmax(axis=1)
    sure = made.max(axis=1)
    over = sure > threshold
    labels = pa.array(list(classes), kind).take(pa.array(best[over]))
    chosen = block.filter(pa.array(over)).append_column(label, labels)
    return _marked(chosen, sure[over], number), block.filter(pa.array(~over))


def _marked(block: pa.Table, weights: np.ndarray, number: int) -> pa.Table:
    block = block.append_column(WEIGHT, pa.array(weights, pa.float64()))
    return block.append_column(ROUND, pa.array(np.full(len(block), number, np.int16)))


def _why(
    done: Sequence[Round], left: Table
) -> Literal["none over the threshold", "all labelled", "rounds over"]:
    if not len(left):
        return "all labelled"
    return "rounds over" if any(done[-1].added.values()) else "none over the threshold"


def _features(given: Table, unlabelled: Table, label: str) -> list[str]:
    names = given.schema.names
    if label not in names:
        raise DataError(f"the labelled rows have no column {label!r}; they have {names[:20]}")
    if taken := [name for name in (WEIGHT, ROUND) if name in names]:
        raise DataError(f"the labelled rows have columns {taken} already: rename or leave them out")
    features = [name for name in names if name != label]
    if label in unlabelled.schema.names:
        raise DataError(
            f"the unlabelled rows have a column {label!r}: those whose label is known belong to "
            f"the labelled ones; of the others .select({features[:5]}{'...' * (len(features) > 5)})"
        )
    if missing := [name for name in features if name not in unlabelled.schema.names]:
        raise DataError(
            f"the unlabelled rows lack the columns {missing} of the labelled ones: leave them out "
            "there, or add them here"
        )
    return features


def _refuse_evaluation(labelled: Table | Splits, unlabelled: Table) -> None:
    """Refuse Tables that come from an evaluation split, as far as their lineage tells.

    A model that has been fitted on a split's rows says nothing when it is evaluated on them, even
    where their labels were its own.
    """
    known: dict[str, str] = {}
    if isinstance(labelled, Splits):
        known = {table.lineage.id: name for name, table in labelled.evaluation.items()}
    given = labelled.train if isinstance(labelled, Splits) else labelled
    for what, table in (("labelled", given), ("unlabelled", unlabelled)):
        for one in table.lineage.chain():
            part = one.parameters.get("part")
            if one.id in known or part in _EVALUATION:
                raise DataError(
                    f"the {what} rows come from the split {known.get(one.id, part)!r}: a model "
                    "fitted on them cannot be evaluated on them. Give rows of the training split, "
                    "or rows that are in no split"
                )
