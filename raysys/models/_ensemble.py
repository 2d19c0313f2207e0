"""Several stored models as one."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.errors import DataError
from raysys.models._blend_weights import LogisticBlend, convex_by_loss, convex_by_squares, log_odds
from raysys.models._combiners import (
    Combine,
    Logistic,
    Mean,
    Meta,
    Vote,
    columns_of,
    load_combine,
    uniform,
)
from raysys.models._predictions import answers, array_of, signature_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from raysys.data import Table
    from raysys.models._store import StoredModel
    from raysys.storage import Storage

_FILE, _MEMBERS = "ensemble.json", "members"


@dataclass(frozen=True)
class Member:
    """A stored model in an ensemble.

    Attributes:
        model: Whose signature names `inputs`, and `classes` (None if it answers with values).
        make: Class that is given the model's folder; called with a batch it answers `(n,)` or
            `(n, classes)`. Importable by name wherever the ensemble is.
    """

    model: StoredModel
    make: type


@dataclass(frozen=True)
class Ensemble:
    """Stored models that become one: made by `mean`, `vote`, `blend` or `stack`.

    Example:
        members = [Member(forest, StoredEstimator), Member(boosted, Trees)]
        ensemble = Ensemble.blend(storage, members, held_out, label="churned")
        run.store_model("churn", ensemble.write, signature=ensemble.signature)
        serve.LazyModel(StoredEnsemble, storage, "churn")

    Attributes:
        storage: Of the members.
        members: In their order.
        signature: Which all of them have.
        combine: Of their answers.
    """

    storage: Storage
    members: tuple[Member, ...]
    signature: dict[str, Any]
    combine: Combine

    @classmethod
    def mean(cls, storage: Storage, members: Sequence[Member]) -> Ensemble:
        """The mean of values or probabilities: bagging, if each learned from a bootstrap sample.

        Raises:
            DataError: The members' signatures do not agree.
        """
        weights = (1 / max(1, len(members)),) * len(members)
        return cls(storage, tuple(members), _agreed(storage, members), Mean(weights))

    @classmethod
    def vote(cls, storage: Storage, members: Sequence[Member]) -> Ensemble:
        """The share of the members that hold each class for the likeliest.

        Raises:
            DataError: The members' signatures do not agree, or have no classes.
        """
        signature = _agreed(storage, members)
        if signature.get("classes") is None:
            raise DataError("members without classes cannot vote: take their mean")
        return cls(storage, tuple(members), signature, Vote())

    @classmethod
    def blend(
        cls,
        storage: Storage,
        members: Sequence[Member],
        table: Table,
        *,
        label: str,
        how: Literal["convex", "logistic"] = "convex",
    ) -> Ensemble:
        """Weights by what the members say of rows that none of them learned from; in tasks.

        Args:
            storage: Of the members.
            members: The models.
            table: The held-out rows.
            label: Column of what was true.
            how: `convex` is a weighted mean of least log loss (of values: of least squared
                error). `logistic` is a regression on the log-odds of two classes; it calibrates.

        Raises:
            DataError: The members' signatures do not agree, a column is not there, or a label
                is missing or unknown to them.
        """
        signature = _agreed(storage, members)
        classes = signature.get("classes")
        if how == "logistic" and (classes is None or len(classes) != 2):
            raise DataError(f"how='logistic' needs two classes, not {classes}: use 'convex'")
        said = [answers(one.make, storage, one.model, table, keep=[label]) for one in members]
        names = [one.model.name for one in members]
        combine = said[0].coordinate(_fit_blend, said[1:], names, label, classes, how, name="blend")
        return cls(storage, tuple(members), signature, combine)

    @classmethod
    def stack(cls, storage: Storage, members: Sequence[Member], meta: Any) -> Ensemble:
        """A fitted estimator over the members' answers.

        Args:
            storage: Of the members.
            members: The models, in the order of the columns that `meta` learned from.
            meta: Fitted on what models like these said of rows that they had not learned from:
                `raysys.train.cross_predict`.

        Raises:
            DataError: The members' signatures do not agree, or `meta` takes another number of
                columns, or knows other classes.
        """
        signature = _agreed(storage, members)
        classes = signature.get("classes")
        width = len(members) * (1 if classes is None or len(classes) == 2 else len(classes))
        if meta.n_features_in_ != width:
            raise DataError(
                f"{type(meta).__name__} was fitted on {meta.n_features_in_} columns; "
                f"{len(members)} members give {width}: fit it on cross_predict of the same members"
            )
        known = getattr(meta, "classes_", None)
        if (None if known is None else np.asarray(known).tolist()) != classes:
            raise DataError(f"{type(meta).__name__} knows the classes {known}, not {classes}")
        return cls(storage, tuple(members), signature, Meta(meta))

    def write(self, folder: Path) -> None:
        """Fill a folder with copies of the members' files: what `Run.store_model` takes.

        Raises:
            StorageError: A member's files are not those that were stored.
        """
        for number, member in enumerate(self.members):
            shutil.copytree(
                member.model.fetch(self.storage), folder / _MEMBERS / str(number),
                ignore=shutil.ignore_patterns("_COMPLETE"),
            )  # fmt: skip
        self.combine.save(folder)
        said = [{**asdict(one.model), "make": _name_of(one.make)} for one in self.members]
        (folder / _FILE).write_text(
            json.dumps({"members": said, "classes": self.signature.get("classes")}, indent=2)
        )


class StoredEnsemble:
    """A stored ensemble, to be asked like each of its members."""

    def __init__(self, folder: Path) -> None:
        """Load what `Ensemble.write` wrote, with its members."""
        facts = json.loads((folder / _FILE).read_text())
        self.classes: list[Any] | None = facts["classes"]
        self._names = [said["name"] for said in facts["members"]]
        self._members = [
            _class_of(said["make"])(folder / _MEMBERS / str(number))
            for number, said in enumerate(facts["members"])
        ]
        self._combine = load_combine(folder)

    def __call__(self, features: Any) -> np.ndarray:
        """Probabilities `(n, classes)`, or values `(n,)`.

        Args:
            features: What the members take.

        Raises:
            DataError: A member's answer is not as its signature says.
        """
        first = next(iter(features.values())) if isinstance(features, dict) else features
        return self._combine([
            uniform(member(features), len(first), self.classes, name)
            for member, name in zip(self._members, self._names, strict=True)
        ])  # fmt: skip


def _agreed(storage: Storage, members: Sequence[Member]) -> dict[str, Any]:
    """The signature that all members have."""
    if not members:
        raise DataError("an ensemble without members: give one or more")
    for member in members:
        _name_of(member.make)
    first, *others = [signature_of(storage, member.model) for member in members]
    for member, other in zip(members[1:], others, strict=True):
        for key in ("inputs", "classes"):
            if first.get(key) != other.get(key):
                raise DataError(
                    f"the {key} of {members[0].model.name!r} and {member.model.name!r} differ: "
                    f"{first.get(key)} and {other.get(key)}; train them on the same"
                )
    return {key: first.get(key) for key in ("inputs", "classes")}


def _fit_blend(
    first: Table,
    others: Sequence[Table],
    names: Sequence[str],
    label: str,
    classes: list[Any] | None,
    how: str,
) -> Combine:
    import pandas as pd

    tables = [table.to_arrow() for table in (first, *others)]
    truth = tables[0][label]
    if truth.null_count or not len(truth):
        raise DataError(f"{label!r} has {truth.null_count} missing values of {len(truth)}")
    said = [
        uniform(array_of(table), len(truth), classes, name)
        for table, name in zip(tables, names, strict=True)
    ]
    if classes is None:
        weights = convex_by_squares(columns_of(said), truth.to_numpy())
        return Mean(tuple(map(float, weights)))
    true = pd.Index(classes).get_indexer(truth.to_pandas())
    if (true < 0).any():
        unknown = truth[int(np.argmax(true < 0))].as_py()
        raise DataError(f"{label!r} has a value that no member knows: {unknown!r}, not {classes}")
    if how == "logistic":
        return Logistic(LogisticBlend.fit(log_odds(columns_of(said)), true))
    chances = np.stack([one[np.arange(len(true)), true] for one in said], axis=1)
    return Mean(tuple(map(float, convex_by_loss(chances))))


def _name_of(make: type) -> str:
    """A class by module and name, as it is found again in another process."""
    if make.__module__ == "__main__" or "<locals>" in make.__qualname__:
        raise DataError(
            f"{make.__qualname__} of {make.__module__} cannot be imported by name: move it to the "
            "top of a module that the serving processes have"
        )
    return f"{make.__module__}:{make.__qualname__}"


def _class_of(name: str) -> type:
    module, _, qualname = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
