"""Training data of the ranker, and trials of its hyperparameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xgboost

from jobs.film_etl import VALIDATION
from jobs.film_features import FEATURES, FilmFeatures
from jobs.film_retrieval import build_towers, candidates, exact_search
from raysys.train import BoostSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.data import Table
    from raysys.train import StateDict
    from raysys.tune import TrialReporter

ROUNDS, ROUNDS_PER_REPORT = 150, 30
# Defaults of the search: small trees on half of the features, as there are few people.
SETTINGS: dict[str, Any] = {
    "objective": "rank:ndcg",
    "max_depth": 3,
    "learning_rate": 0.05,
    "min_child_weight": 0.2,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "reg_lambda": 5.0,
}
_FOLDS = 5  # a fifth of the people evaluates a trial


def labelled_candidates(
    block: pa.Table, tables: Mapping[str, Table], parameters: StateDict
) -> pa.Table:
    """Candidates at the validation cut for the people of a block that have a validation set.

    Returns:
        A row per candidate: `userId`, ascending; the features; `label`, 1 for a favourite of the
        validation set.
    """
    ratings, films, people = (tables[name].to_arrow() for name in ("ratings", "films", "people"))
    film_features = FilmFeatures(ratings, films, people, VALIDATION)
    favourites = film_features.favourites_in_part(ratings, films, VALIDATION)
    rows = np.intersect1d(film_features.rows(block["userId"].to_numpy()), list(favourites))
    towers = build_towers(films, parameters)
    search = exact_search(towers.index_vectors())
    retrieved, _ = candidates(film_features, towers, search, rows, rated=False)
    features = film_features.candidate_features(rows, retrieved).reshape(-1, len(FEATURES))
    labels = [np.isin(retrieved[at], favourites[row]) for at, row in enumerate(rows)]
    columns = {"userId": np.repeat(film_features.people[rows], retrieved.shape[1])}
    columns |= {name: features[:, at] for at, name in enumerate(FEATURES)}
    columns["label"] = np.concatenate([*labels, np.empty(0)]).astype(np.float32)
    return pa.table(columns)


def rank_held_out(
    settings: dict[str, Any], tables: Mapping[str, pa.Table], report: TrialReporter
) -> None:
    """A trial: train on four fifths of the people, report NDCG@10 on the others."""
    rows = tables["candidates"].sort_by("userId")
    _, person = np.unique(rows["userId"].to_numpy(), return_inverse=True)
    held_out = person % _FOLDS == 0
    matrices = []
    for mask in (~held_out, held_out):
        part = rows.filter(mask)
        features = np.stack([part[name].to_numpy() for name in FEATURES], axis=1)
        matrices.append(
            xgboost.DMatrix(features, label=part["label"].to_numpy(), qid=part["userId"].to_numpy())
        )
    training, validation = matrices
    params = {**BoostSettings(**(SETTINGS | settings)).params(), "eval_metric": "ndcg@10"}
    booster = xgboost.Booster(params, [training, validation])
    for number in range(ROUNDS):
        booster.update(training, number)
        if (number + 1) % ROUNDS_PER_REPORT == 0:
            text = booster.eval(validation, "held_out")
            report({"ndcg_at_10": float(text.rpartition(":")[2])})
