"""Boosted trees and a network for flight delays: targets, predictions, blend and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import xgboost

from jobs.flight_features import CODES, FEATURES, LATE, NUMBERS
from jobs.flight_mlp import DelayNetwork, build_network, codes_of
from raysys.evaluate import binary_measures
from raysys.models import LogisticBlend
from raysys.train import BoostSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.data import Splits, Table
    from raysys.features import FittedFeaturizer
    from raysys.train import StateDict
    from raysys.tune import TrialReporter

_SOFT_MINUTES = 6.0
# Fixed settings; labels are from 0 to 1.
BOOST_FIXED: dict[str, Any] = {
    "objective": "reg:logistic",
    "eval_metric": "auc",
    "subsample": 0.8,
    "max_bin": 128,
}
# scikit-learn's HistGradientBoosting with its defaults, and with tuned settings.
PEERS: dict[str, dict[str, Any]] = {
    "HistGradientBoosting": {},
    "HistGradientBoosting tuned": {
        "max_iter": 1000,
        "learning_rate": 0.06,
        "max_leaf_nodes": 63,
        "min_samples_leaf": 60,
        "l2_regularization": 5.0,
        "max_features": 0.3,
    },
}

TRIAL_ROUNDS, ROUNDS_PER_REPORT = 150, 30
_TRIAL_SHARE = 4  # a trial is trained on every fourth flight


def with_soft_target(table: Table) -> Table:
    """Training rows of the trees: the features and a soft label from 0 to 1.

    A flight a minute over the limit has nearly the same label as one a minute under it.
    """
    over = (pl.col("arr_delay") - LATE) / _SOFT_MINUTES
    target = 1 / (1 + (-over).exp())
    return table.with_columns(target=target).select([*FEATURES, "target"])


def with_hard_target(table: Table) -> Table:
    """Validation rows of the trees: the features and the binary label."""
    return table.with_columns(target=pl.col("late")).select([*FEATURES, "target"])


def targets(splits: Splits) -> dict[str, Table]:
    """Features and `target`: soft labels for training, binary labels for validation."""
    return {
        "train": with_soft_target(splits.train),
        "validation": with_hard_target(splits["validation"]),
    }


def boost_trial(
    settings: dict[str, Any], tables: Mapping[str, pa.Table], report: TrialReporter
) -> None:
    """A trial: train on a sample of the flights, report ROC AUC."""
    settings = {**BOOST_FIXED, "learning_rate": 0.1, **settings}
    matrices: list[xgboost.QuantileDMatrix] = []
    for name, share in (("train", _TRIAL_SHARE), ("validation", 1)):
        rows = tables[name].take(np.arange(0, len(tables[name]), share))
        features = np.stack([rows[n].to_numpy() for n in FEATURES], axis=1)
        matrices.append(xgboost.QuantileDMatrix(
            features, rows["target"].to_numpy(), max_bin=settings["max_bin"],
            ref=matrices[0] if matrices else None,
        ))  # fmt: skip
    training, validation = matrices
    booster = xgboost.Booster(BoostSettings(**settings).params() | {"nthread": 2}, matrices)
    for number in range(1, TRIAL_ROUNDS + 1):
        booster.update(training, number)
        if number % ROUNDS_PER_REPORT == 0:
            report({"auc": float(booster.eval(validation, "validation").rpartition(":")[2])})


class Trained(NamedTuple):
    """Trained models, in the object store for all tasks."""

    booster: bytes
    featurizer: FittedFeaturizer
    network: StateDict


class Models:
    """Predictions of both models for features float32 `(n, len(FEATURES))`."""

    def __init__(
        self, booster: xgboost.Booster, featurizer: FittedFeaturizer, network: DelayNetwork
    ) -> None:
        self._booster, self._featurizer, self._network = booster, featurizer, network
        self._booster.set_param({"nthread": 1})

    @classmethod
    def of(cls, trained: Trained) -> Models:
        """Load trained models."""
        trees = xgboost.Booster(model_file=bytearray(trained.booster))
        return cls(trees, trained.featurizer, build_network(trained.network))

    def boosted(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of the trees, float32 `(n,)`."""
        return self._booster.inplace_predict(features, predict_type="margin")

    def network(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of the network, float32 `(n,)`."""
        numbers = self._featurizer.transform_batch(
            {n: features[:, at] for at, n in enumerate(NUMBERS)}
        )
        return self._network.late_log_odds(numbers, codes_of(features[:, -len(CODES) :]))


def score(block: pa.Table, trained: Trained) -> pa.Table:
    """Log-odds of both models for a block, `boosted` and `network`, and the label `late`."""
    features = np.stack([block[name].to_numpy() for name in FEATURES], axis=1)
    models = Models.of(trained)
    return pa.table({
        "boosted": models.boosted(features),
        "network": models.network(features),
        "late": block["late"],
    })  # fmt: skip


def fit_blend(scores: Table) -> LogisticBlend:
    """Fit the blend of trees and network to the validation month."""
    return LogisticBlend.fit(*_arrays(scores))


def measure(validation: Table, test: Table, blend: LogisticBlend) -> dict[str, dict[str, float]]:
    """Metrics of the test months; single models are calibrated on the validation month."""
    (fit_odds, fit_late), (log_odds, late) = _arrays(validation), _arrays(test)
    results = {}
    for at, name in enumerate(("XGBoost alone", "network alone")):
        results[name] = _calibrated(fit_odds[:, at], fit_late, log_odds[:, at], late)
    return results | {"raysys": binary_measures(late, blend.probability(log_odds))}


def measure_peer(splits: Mapping[str, Table], settings: dict[str, Any]) -> dict[str, float]:
    """scikit-learn's boosting on the same features and months, calibrated the same way.

    With `max_iter`, the number of iterations is chosen on the validation month, and the model is
    fitted again with it; otherwise defaults apply.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier as Peer

    rows = {name: table.to_arrow() for name, table in splits.items()}
    x = {
        name: np.stack([part[n].to_numpy() for n in FEATURES], axis=1)
        for name, part in rows.items()
    }
    y = {name: part["late"].to_numpy() for name, part in rows.items()}
    if "max_iter" in settings:
        candidate = Peer(
            **settings, early_stopping=True, n_iter_no_change=40, scoring="roc_auc", random_state=0
        ).fit(x["train"], y["train"], X_val=x["validation"], y_val=y["validation"])
        best = max(1, int(np.argmax(candidate.validation_score_)))
        settings = {**settings, "max_iter": best, "early_stopping": False}
    peer = Peer(**settings, random_state=0).fit(x["train"], y["train"])
    return _calibrated(
        peer.decision_function(x["validation"]), y["validation"],
        peer.decision_function(x["test"]), y["test"],
    )  # fmt: skip


def _calibrated(
    fit_odds: np.ndarray, fit_late: np.ndarray, log_odds: np.ndarray, late: np.ndarray
) -> dict[str, float]:
    scale = LogisticBlend.fit(fit_odds[:, None], fit_late)
    return binary_measures(late, scale.probability(log_odds[:, None]))


def _arrays(scores: Table) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds float64 `(n, 2)` of trees and network, and labels `(n,)`."""
    rows = scores.to_arrow()
    log_odds = np.stack([rows[name].to_numpy() for name in ("boosted", "network")], axis=1)
    return log_odds.astype(np.float64), rows["late"].to_numpy().astype(np.float64)
