"""A trained booster together with the encoding of its input columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from raysys.arguments import checked
from raysys.errors import DataError, StorageError
from raysys.identity import check_release
from raysys.imports import lazy_import
from raysys.train.boosting._boosting_rounds import EvalHistory
from raysys.train.boosting._feature_columns import FeatureEncoding

if TYPE_CHECKING:
    from xgboost import Booster

    from raysys.data import Table

xgboost = lazy_import("xgboost")

_BOOSTER_FILE, _METADATA_FILE = "trees.ubj", "boosted.json"


@dataclass(frozen=True)
class BoostedModel:
    """A booster that predicts Tables and requests.

    Attributes:
        booster: XGBoost's booster; its input is `encoding.matrix(columns)`.
        encoding: Names of the features, categories, classes of the label.
        objective: XGBoost's objective.
        metric: Metric of the validation rows; empty without any.
        history: Its values, one a round; those after the best are of rounds that were cut off.
    """

    booster: Booster
    encoding: FeatureEncoding
    objective: str
    metric: str = ""
    history: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        parts = [self.objective, f"{self.num_boosted_rounds} rounds"]
        if self.history:
            best = self.best_iteration
            parts += [f"best iteration {best}", f"{self.metric} {self.history[best]:.4f}"]
            parts.append(f"last {self.history[-1]:.4f}")
        return f"BoostedModel({', '.join(parts)}, {len(self.encoding.features)} features)"

    @property
    def num_boosted_rounds(self) -> int:
        """Rounds of the booster: up to the best one, if early stopping was used."""
        return self.booster.num_boosted_rounds()

    @property
    def best_iteration(self) -> int:
        """First round, from 0, with the best validation metric; the last without validation."""
        if not self.history:
            return self.num_boosted_rounds - 1
        return EvalHistory(self.metric, self.history).best_iteration

    @property
    def feature_importances(self) -> dict[str, float]:
        """Share of each feature in the total gain of all splits, largest first."""
        gains = self.booster.get_score(importance_type="total_gain")
        # A tree of one class of several gives a list.
        names = zip(self.encoding.features, self.encoding.booster_names, strict=True)
        sums = {name: float(np.sum(gains.get(inner, 0.0))) for name, inner in names}
        total = sum(sums.values()) or 1.0
        return {n: sums[n] / total for n in sorted(sums, key=lambda name: -sums[name])}

    @checked
    def predict(self, table: Table, *, keep: Sequence[str] = ()) -> Table:
        """Predict the rows of a Table in one task a block; rows stay in their order.

        Args:
            table: Table with the features.
            keep: Columns to keep, before those of `predict_batch`.

        Raises:
            DataError: A column is missing or of another type than in training.
        """
        names = table.schema.names
        if missing := [n for n in (*self.encoding.features, *keep) if n not in names]:
            raise DataError(f"predict: no such column: {missing[:20]}; the Table has {names[:20]}")
        needed = list(dict.fromkeys([*keep, *self.encoding.features]))
        return table.select(needed).map_blocks(
            _predict_block, ray.put(self), list(keep), name="boost_predict"
        )

    def predict_batch(self, columns: Mapping[str, Any] | pa.Table) -> dict[str, np.ndarray]:
        """Predict rows in this process: a request, a batch, an Arrow table.

        Args:
            columns: Equally long columns by name; those that are not features are ignored.

        Returns:
            `prediction`: the likeliest class, of the label's own type, or a float32 value. For
            classes also `probability_<class>`, float32.
        """
        probabilities, classes = self(columns), self.encoding.classes
        if classes is None:
            return {"prediction": probabilities}
        likeliest = np.asarray(classes)[probabilities.argmax(axis=1)]
        by_class = zip(classes, probabilities.T, strict=True)
        return {"prediction": likeliest, **{f"probability_{value}": p for value, p in by_class}}

    def __call__(self, features: Mapping[str, Any] | pa.Table | np.ndarray) -> np.ndarray:
        """Probabilities float32 `(n, classes)` in the order of the classes; values `(n,)` without.

        Args:
            features: As for `predict_batch`, or numbers `(n, features)`.
        """
        if isinstance(features, np.ndarray):
            names = self.encoding.features
            if features.ndim != 2 or features.shape[1] != len(names):
                raise DataError(
                    f"features of shape {features.shape}; expected (rows, {len(names)}): "
                    f"{list(names)[:20]}"
                )
            features = dict(zip(names, features.T, strict=True))
        matrix, classes = self.encoding.matrix(features), self.encoding.classes
        if len(matrix):
            raw = self.booster.inplace_predict(matrix)
        else:  # which XGBoost refuses
            raw = np.empty((0, len(classes)) if classes and len(classes) > 2 else 0, np.float32)
        return raw if classes is None or raw.ndim == 2 else np.stack([1 - raw, raw], axis=1)

    @property
    def signature(self) -> dict[str, Any]:
        """Names of the features, and the classes or None, for the model store."""
        return {"inputs": list(self.encoding.features), "classes": self.encoding.classes}

    @checked
    def save(self, folder: Path) -> None:
        """Write `trees.ubj`, which XGBoost reads, and `boosted.json` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.booster.save_model(folder / _BOOSTER_FILE)
        metadata = {
            "encoding": asdict(self.encoding), "objective": self.objective, "metric": self.metric,
            "history": self.history, "xgboost": xgboost.__version__,
        }  # fmt: skip
        (folder / _METADATA_FILE).write_text(json.dumps(metadata))

    @classmethod
    @checked
    def load(cls, folder: Path) -> BoostedModel:
        """Read a model that `save` wrote.

        Raises:
            StorageError: The folder has no boosted model, or a later XGBoost wrote it.
        """
        if not (folder / _METADATA_FILE).is_file():
            raise StorageError(
                f"{folder} holds no boosted model: pass the folder of BoostedModel.save"
            )
        metadata = json.loads((folder / _METADATA_FILE).read_text())
        present = xgboost.__version__
        stored = metadata.pop("xgboost", present)
        check_release("xgboost", stored, present, f"the boosted model at {folder}")
        encoding = metadata.pop("encoding")
        features = tuple(encoding.pop("features"))
        booster = xgboost.Booster(model_file=folder / _BOOSTER_FILE)
        return cls(booster, FeatureEncoding(features, **encoding), **metadata)


def _predict_block(block: pa.Table, model: BoostedModel, keep: Sequence[str]) -> pa.Table:
    model.booster.set_param({"nthread": 1})
    return pa.table({**{name: block[name] for name in keep}, **model.predict_batch(block)})
