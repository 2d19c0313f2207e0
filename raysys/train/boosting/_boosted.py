"""What boosting gives: trees, and how the columns of a Table or a request become their input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from raysys.errors import DataError, StorageError
from raysys.train.boosting._columns import Coding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xgboost

    from raysys.data import Table

_TREES, _REST = "trees.ubj", "boosted.json"


@dataclass(frozen=True)
class Boosted:
    """A booster and what belongs to it.

    Attributes:
        booster: XGBoost's own; its input is `coding.matrix(columns)`.
        coding: Names of the features, categories, classes of the label.
        metric: What was measured of the validation rows; empty without any.
        history: Its values, one a round: those after the best are of rounds that were cut off.
        rounds: Of the booster.
        importances: Each feature's share of the gain of all splits, largest first.
    """

    booster: xgboost.Booster
    coding: Coding
    metric: str = ""
    history: list[float] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """How many the booster has: up to the best one, where patience ended the growing."""
        return self.booster.num_boosted_rounds()

    @property
    def importances(self) -> dict[str, float]:
        """Each feature's share of what all splits gained, largest first."""
        gains = self.booster.get_score(importance_type="total_gain")
        # A tree of one class of several gives a list.
        found = {name: float(np.sum(gains.get(name, 0.0))) for name in self.coding.features}
        total = sum(found.values()) or 1.0
        return {n: found[n] / total for n in sorted(found, key=lambda name: -found[name])}

    def predict(self, table: Table, *, keep: Sequence[str] = ()) -> Table:
        """Predict the rows of a Table in one task a block; rows stay in their order.

        Args:
            table: Has the features.
            keep: Columns that go along, before what `predict_batch` gives.

        Raises:
            DataError: A column is missing or of another type than in training.
        """
        names = table.schema.names
        if missing := [n for n in (*self.coding.features, *keep) if n not in names]:
            raise DataError(f"predict: {missing[:20]} are missing; the Table has {names[:20]}")
        needed = list(dict.fromkeys([*keep, *self.coding.features]))
        return table.select(needed).map_blocks(
            _predict_block, ray.put(self), list(keep), name="boost_predict"
        )

    def predict_batch(self, columns: Mapping[str, Any] | pa.Table) -> dict[str, np.ndarray]:
        """Predict rows that are here: a request, a few, an Arrow table.

        Args:
            columns: Equally long columns by name; others than the features are left aside.

        Returns:
            `prediction`: of classes the likeliest, of the label's own kind; else float32. Of
            classes also `probability_<class>` for each, float32.
        """
        matrix = self.coding.matrix(columns)
        found = self.booster.inplace_predict(matrix) if len(matrix) else self._nothing()
        classes = self.coding.classes
        if classes is None:
            return {"prediction": found}
        each = found if found.ndim == 2 else np.stack([1 - found, found], axis=1)
        likeliest = np.asarray(classes)[each.argmax(axis=1)]
        shares = {f"probability_{value}": each[:, at] for at, value in enumerate(classes)}
        return {"prediction": likeliest, **shares}

    def save(self, folder: Path) -> None:
        """Write `trees.ubj`, which XGBoost reads, and `boosted.json` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.booster.save_model(folder / _TREES)
        rest = {"coding": asdict(self.coding), "metric": self.metric, "history": self.history}
        (folder / _REST).write_text(json.dumps(rest))

    @classmethod
    def load(cls, folder: Path) -> Boosted:
        """Read what `save` wrote.

        Raises:
            StorageError: The folder holds no such model.
        """
        import xgboost

        if not (folder / _REST).is_file():
            raise StorageError(f"{folder} holds no boosted model: give the folder of Boosted.save")
        rest = json.loads((folder / _REST).read_text())
        coding = rest.pop("coding")
        features = tuple(coding.pop("features"))
        return cls(xgboost.Booster(model_file=folder / _TREES), Coding(features, **coding), **rest)

    def _nothing(self) -> np.ndarray:
        classes = self.coding.classes
        return np.empty((0, len(classes)) if classes and len(classes) > 2 else 0, np.float32)


def _predict_block(block: pa.Table, model: Boosted, keep: Sequence[str]) -> pa.Table:
    model.booster.set_param({"nthread": 1})
    kept = {name: block[name] for name in keep}
    return pa.table({**kept, **model.predict_batch(block)})
