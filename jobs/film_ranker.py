"""What the ranker learns from, and how a search measures its settings."""

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

ROUNDS, ROUNDS_A_REPORT = 150, 30
# What a search starts from: few people, so small trees that see half of all there is.
SETTINGS: dict[str, Any] = {
    "objective": "rank:ndcg",
    "max_depth": 3,
    "learning_rate": 0.05,
    "min_child_weight": 0.2,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "reg_lambda": 5.0,
}
_FOLDS = 5  # one in five people measures a trial


def labelled_candidates(
    block: pa.Table, tables: Mapping[str, Table], parameters: StateDict
) -> pa.Table:
    """Candidates at the validation cut for the people of a block that have a validation set.

    Returns:
        One row a candidate: `userId` ascending, the features, and `label`, 1 for a favourite
        of the validation set.
    """
    rated, every, people = (tables[name].to_arrow() for name in ("ratings", "films", "people"))
    known = FilmFeatures(rated, every, people, VALIDATION)
    wanted = known.favourites_in_part(rated, every, VALIDATION)
    rows = np.intersect1d(known.rows(block["userId"].to_numpy()), list(wanted))
    towers = build_towers(every, parameters)
    films_found, _ = candidates(
        known, towers, exact_search(towers.index_vectors()), rows, rated=False
    )
    features = known.candidate_features(rows, films_found).reshape(-1, len(FEATURES))
    labels = [np.isin(films_found[at], wanted[row]) for at, row in enumerate(rows)]
    columns = {"userId": np.repeat(known.people[rows], films_found.shape[1])}
    columns |= {name: features[:, at] for at, name in enumerate(FEATURES)}
    columns["label"] = np.concatenate([*labels, np.empty(0)]).astype(np.float32)
    return pa.table(columns)


def rank_held_out(
    settings: dict[str, Any], tables: Mapping[str, pa.Table], report: TrialReporter
) -> None:
    """A trial: boost on four fifths of the people, report NDCG@10 on the others."""
    rows = tables["candidates"].sort_by("userId")
    _, person = np.unique(rows["userId"].to_numpy(), return_inverse=True)
    held_out = person % _FOLDS == 0
    matrices = []
    for chosen in (~held_out, held_out):
        part = rows.filter(chosen)
        features = np.stack([part[name].to_numpy() for name in FEATURES], axis=1)
        matrices.append(
            xgboost.DMatrix(features, label=part["label"].to_numpy(), qid=part["userId"].to_numpy())
        )
    training, measuring = matrices
    params = {**BoostSettings(**(SETTINGS | settings)).params(), "eval_metric": "ndcg@10"}
    booster = xgboost.Booster(params, [training, measuring])
    for done in range(ROUNDS):
        booster.update(training, done)
        if (done + 1) % ROUNDS_A_REPORT == 0:
            text = booster.eval(measuring, "held_out")
            report({"ndcg_at_10": float(text.rpartition(":")[2])})
