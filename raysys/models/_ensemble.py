"""Ensembles of stored models."""

from __future__ import annotations

import json
import pkgutil
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.arguments import checked
from raysys.errors import DataError
from raysys.imports import lazy_import
from raysys.models import _combiners
from raysys.models._combiners import Combiner, columns_of, load_combiner, to_signature
from raysys.models._importable import import_path
from raysys.models._predict import array_of, predict, signature_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from raysys.data import Table
    from raysys.models._model_store import StoredModel
    from raysys.storage import Storage

pandas = lazy_import("pandas")

_FILE, _MEMBERS = "ensemble.json", "members"


@checked
@dataclass(frozen=True)
class EnsembleMember:
    """A stored model in an ensemble.

    Attributes:
        model: Model whose signature names `inputs`, and `classes` (None of a regressor).
        model_class: `Predictor` for a model of `save`; or a class that is created with the model's
            folder, and called with a batch returns `(n,)` or `(n, classes)`. Importable by name
            where the ensemble is loaded.
    """

    model: StoredModel
    model_class: type


@dataclass(frozen=True)
class Ensemble:
    """Several stored models as one: a `mean`, `vote`, `blend` or `stack`.

    Example:
        members = [EnsembleMember(forest, Predictor), EnsembleMember(boosted, Predictor)]
        ensemble = Ensemble.blend(storage, members, held_out, label="churned")
        models.save(ensemble, "churn", storage)
        serve.LazyPredictor(storage, "churn")

    Attributes:
        storage: Storage of the members.
        members: Members in their order.
        signature: Signature that all members share.
        combiner: Combiner of the members' predictions.
    """

    storage: Storage
    members: tuple[EnsembleMember, ...]
    signature: dict[str, Any]
    combiner: Combiner

    @classmethod
    @checked
    def mean(cls, storage: Storage, members: Sequence[EnsembleMember]) -> Ensemble:
        """Mean of values or probabilities: soft voting, or bagging of bootstrap samples.

        Raises:
            DataError: The members' signatures differ.
        """
        signature = _shared_signature(storage, members)
        weights = (1 / len(members),) * len(members)
        return cls(storage, tuple(members), signature, Combiner("mean", weights))

    @classmethod
    @checked
    def vote(cls, storage: Storage, members: Sequence[EnsembleMember]) -> Ensemble:
        """Share of the members whose likeliest class is this one: hard voting.

        Raises:
            DataError: The members' signatures differ or have no classes.
        """
        signature = _shared_signature(storage, members)
        if signature.get("classes") is None:
            raise DataError("regressors cannot vote: use Ensemble.mean")
        return cls(storage, tuple(members), signature, Combiner("vote"))

    @classmethod
    @checked
    def blend(
        cls, storage: Storage, members: Sequence[EnsembleMember], table: Table, *, label: str,
        method: Literal["convex", "logistic"] = "convex",
    ) -> Ensemble:  # fmt: skip
        """A weighted mean, with weights fitted in tasks on rows that no member was trained on.

        Args:
            storage: Storage of the members.
            members: Members of the ensemble.
            table: Held-out rows.
            label: Label column.
            method: "convex": weights of the smallest log loss (of values: squared error).
                "logistic": logistic regression on the log-odds of two classes; it calibrates.

        Raises:
            DataError: The members' signatures differ, a column or label is missing, or a label
                is unknown to the members.
        """
        signature = _shared_signature(storage, members)
        classes = signature.get("classes")
        if method == "logistic" and (classes is None or len(classes) != 2):
            raise DataError(f"method='logistic' needs two classes, not {classes}: use 'convex'")
        first, *more = [
            predict(member.model_class, storage, member.model, table, keep=[label])
            for member in members
        ]
        names = [member.model.name for member in members]
        combiner = first.coordinate(_fit_blend, more, names, label, classes, method, name="blend")
        return cls(storage, tuple(members), signature, combiner)

    @classmethod
    @checked
    def stack(
        cls, storage: Storage, members: Sequence[EnsembleMember], final_estimator: Any
    ) -> Ensemble:
        """A fitted estimator on the members' predictions.

        Args:
            storage: Storage of the members.
            members: Members, in the order of the columns that `final_estimator` was fitted on.
            final_estimator: Estimator fitted on out-of-fold predictions of models like these:
                `raysys.train.cross_val_predict`.

        Raises:
            DataError: The members' signatures differ, or `final_estimator` has other classes or
                another number of features.
        """
        signature = _shared_signature(storage, members)
        classes = signature.get("classes")
        width = len(members) * (1 if classes is None or len(classes) == 2 else len(classes))
        if final_estimator.n_features_in_ != width:
            raise DataError(
                f"{type(final_estimator).__name__} was fitted on "
                f"{final_estimator.n_features_in_} columns; {len(members)} members give {width}: "
                "fit it on cross_val_predict of the same members"
            )
        fitted = getattr(final_estimator, "classes_", None)
        if (None if fitted is None else np.asarray(fitted).tolist()) != classes:
            raise DataError(
                f"{type(final_estimator).__name__} has the classes {fitted}, not {classes}: fit it "
                "on the same labels"
            )
        return cls(storage, tuple(members), signature, Combiner("stack", final_estimator))

    def write(self, folder: Path) -> None:
        """Fill a folder with copies of the members' files: the `write` of `Run.store_model`.

        Raises:
            StorageError: A member's files were changed.
        """
        for number, member in enumerate(self.members):
            shutil.copytree(
                member.model.fetch(self.storage), folder / _MEMBERS / str(number),
                ignore=shutil.ignore_patterns("_COMPLETE"),
            )  # fmt: skip
        self.combiner.save(folder)
        members = [
            {**asdict(member.model), "class": import_path(member.model_class)}
            for member in self.members
        ]
        metadata = {"members": members, "classes": self.signature.get("classes")}
        (folder / _FILE).write_text(json.dumps(metadata, indent=2))


class StoredEnsemble:
    """A stored ensemble, which predicts like each of its members."""

    def __init__(self, folder: Path) -> None:
        """Load an ensemble written by `Ensemble.write`, with its members."""
        metadata = json.loads((folder / _FILE).read_text())
        self.classes: list[Any] | None = metadata["classes"]
        self._names = [member["name"] for member in metadata["members"]]
        self._members = [
            pkgutil.resolve_name(member["class"])(folder / _MEMBERS / str(number))
            for number, member in enumerate(metadata["members"])
        ]
        self._combine = load_combiner(folder)

    def __call__(self, features: Any) -> np.ndarray:
        """Probabilities `(n, classes)`, or values `(n,)`.

        Raises:
            DataError: A member's predictions do not match its signature.
        """
        first = next(iter(features.values())) if isinstance(features, dict) else features
        return self._combine([
            to_signature(member(features), len(first), self.classes, name)
            for member, name in zip(self._members, self._names, strict=True)
        ])  # fmt: skip


def _shared_signature(storage: Storage, members: Sequence[EnsembleMember]) -> dict[str, Any]:
    """Signature that all members share."""
    if not members:
        raise DataError("members=[]: an ensemble needs one or more members")
    for member in members:
        import_path(member.model_class)
    first = signature_of(storage, members[0].model)
    for member in members[1:]:
        signature = signature_of(storage, member.model)
        for key in ("inputs", "classes"):
            if first.get(key) != signature.get(key):
                raise DataError(
                    f"the {key} of {members[0].model.name!r} and {member.model.name!r} differ: "
                    f"{first.get(key)} and {signature.get(key)}; train them on the same"
                )
    return {key: first.get(key) for key in ("inputs", "classes")}


def _fit_blend(
    first: Table, more: Sequence[Table], names: Sequence[str], label: str,
    classes: list[Any] | None, method: str,
) -> Combiner:  # fmt: skip
    tables = [table.to_arrow() for table in (first, *more)]
    labels = tables[0][label]
    if labels.null_count or not len(labels):
        raise DataError(f"{label!r} has {labels.null_count} missing values of {len(labels)}")
    predictions = [
        to_signature(array_of(table), len(labels), classes, name)
        for table, name in zip(tables, names, strict=True)
    ]
    if classes is None:
        weights = _combiners.convex_squared_error_weights(
            columns_of(predictions), labels.to_numpy()
        )
        return Combiner("mean", tuple(map(float, weights)))
    codes = pandas.Index(classes).get_indexer(labels.to_pandas())
    if (codes < 0).any():
        unknown = labels[int(np.argmax(codes < 0))].as_py()
        raise DataError(f"{label!r} has a class unknown to the members: {unknown!r}, not {classes}")
    if method == "logistic":
        log_odds = _combiners.log_odds(columns_of(predictions))
        return Combiner("logistic", _combiners.LogisticBlend.fit(log_odds, codes))
    of_label = np.stack([p[np.arange(len(codes)), codes] for p in predictions], axis=1)
    return Combiner("mean", tuple(map(float, _combiners.convex_log_loss_weights(of_label))))
