"""Ensembles of stored models, compared with scikit-learn and brute force."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from raysys import serve
from raysys.data import Table
from raysys.errors import DataError, StorageError
from raysys.models import (
    Ensemble,
    EnsembleMember,
    ModelStore,
    StoredEnsemble,
    StoredEstimator,
    StoredModel,
    estimator_signature,
    predict,
    save_estimator,
)
from raysys.storage import Storage
from raysys.tracking import open_run
from raysys.train import cross_val_predict, fit_estimator
from tests.models.tree_model import Trees

pytestmark = pytest.mark.usefixtures("ray_cluster")

CANCER = load_breast_cancer(as_frame=True).frame
SIZES = [name for name in CANCER.columns if name != "target"]
TRAIN, VALIDATION, TEST = (CANCER.iloc[start::3] for start in range(3))
TRUE = VALIDATION["target"].to_numpy()


def table_of(frame: pd.DataFrame) -> Table:
    return Table.from_arrow(pa.Table.from_pandas(frame, preserve_index=False), 80)


def store(storage: Storage, name: str, write: Any, signature: dict[str, Any] | None) -> StoredModel:
    run = open_run(storage, "ensembles", name, settings={})
    models = ModelStore(storage)
    saved = models.register(
        name, write, manifest={"signature": signature}, run=run, path=f"models/{name}"
    )
    run.end("FINISHED", {})
    models.promote(saved)
    return saved


def stored(storage: Storage, name: str, estimator: Any) -> EnsembleMember:
    write = functools.partial(save_estimator, estimator)
    model = store(storage, name, write, estimator_signature(estimator))
    return EnsembleMember(model, StoredEstimator)


def write_trees(booster: bytes, folder: Path) -> None:
    (folder / "trees.ubj").write_bytes(booster)


@dataclass(frozen=True)
class StoredModels:
    """Models fitted on TRAIN: two estimators, and trees that return `(n,)`."""

    storage: Storage
    members: list[EnsembleMember]
    probabilities: np.ndarray  # of the second class of VALIDATION (n, 3)


@pytest.fixture(scope="module")
def three(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> StoredModels:
    storage = Storage(tmp_path_factory.mktemp("three"))
    few = SIZES[:6]
    estimators = [
        make_pipeline(StandardScaler(), LogisticRegression()).fit(TRAIN[few], TRAIN["target"]),
        GaussianNB().fit(TRAIN[few], TRAIN["target"]),
    ]
    members = [stored(storage, f"m{n}", one) for n, one in enumerate(estimators)]
    matrix = xgboost.DMatrix(TRAIN[few].to_numpy(), TRAIN["target"])
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, matrix, 15)
    signature = {"inputs": few, "classes": [0, 1]}
    write = functools.partial(write_trees, bytes(booster.save_raw("ubj")))
    members.append(EnsembleMember(store(storage, "trees", write, signature), Trees))
    said = [one.predict_proba(VALIDATION[few])[:, 1] for one in estimators]
    said.append(booster.inplace_predict(VALIDATION[few].to_numpy()))
    return StoredModels(storage, members, np.stack(said, axis=1).astype(float))


def predict_with(ensemble: Ensemble, folder: Path, frame: pd.DataFrame) -> np.ndarray:
    """Write an ensemble, load it and predict."""
    folder.mkdir()
    ensemble.write(folder)
    return StoredEnsemble(folder)(frame[ensemble.signature["inputs"]].to_numpy())


def test_means_and_votes_of_the_members(three: StoredModels, tmp_path: Path) -> None:
    mean = predict_with(Ensemble.mean(three.storage, three.members), tmp_path / "mean", VALIDATION)
    np.testing.assert_allclose(mean[:, 1], three.probabilities.mean(axis=1), atol=1e-7)
    np.testing.assert_allclose(mean.sum(axis=1), 1)
    vote = predict_with(Ensemble.vote(three.storage, three.members), tmp_path / "vote", VALIDATION)
    np.testing.assert_allclose(vote[:, 1], (three.probabilities > 0.5).mean(axis=1))


def test_convex_weights_have_the_smallest_loss(three: StoredModels, tmp_path: Path) -> None:
    blend = Ensemble.blend(three.storage, three.members, table_of(VALIDATION), label="target")
    found = log_loss(TRUE, predict_with(blend, tmp_path / "blend", VALIDATION)[:, 1])
    grid = np.linspace(0, 1, 41)
    losses = [
        log_loss(TRUE, np.clip(three.probabilities @ [a, b, 1 - a - b], 0, 1))
        for a, b in product(grid, grid)
        if a + b <= 1 + 1e-9
    ]
    assert min(losses) - 1e-4 < found <= min(losses) + 1e-6
    assert found < min(log_loss(TRUE, three.probabilities[:, at]) for at in range(3))


def test_logistic_weights_have_the_highest_likelihood(three: StoredModels, tmp_path: Path) -> None:
    blend = Ensemble.blend(
        three.storage, three.members, table_of(VALIDATION), label="target", method="logistic"
    )
    clipped = np.clip(three.probabilities, 1e-15, 1 - 1e-15)
    odds = np.log(clipped) - np.log1p(-clipped)

    def loss(weights: np.ndarray) -> float:
        total = odds @ weights[:3] + weights[3]
        return float((np.logaddexp(0, total) - TRUE * total).mean())

    best = minimize(loss, np.zeros(4), options={"gtol": 1e-9})
    found = predict_with(blend, tmp_path / "logistic", VALIDATION)[:, 1]
    assert log_loss(TRUE, found) == pytest.approx(best.fun, abs=1e-4)


def test_regressors_are_blended_by_squared_error(storage: Storage, tmp_path: Path) -> None:
    frame = load_diabetes(as_frame=True).frame
    names = [name for name in frame.columns if name != "target"]
    fitted, held = frame.iloc[::2], frame.iloc[1::2]
    models = [Ridge(0.1), KNeighborsRegressor(9), LinearRegression()]
    for one in models:
        one.fit(fitted[names], fitted["target"])
    members = [stored(storage, f"r{at}", one) for at, one in enumerate(models)]
    blend = Ensemble.blend(storage, members, table_of(held), label="target")
    said = np.stack([one.predict(held[names]) for one in models], axis=1)
    grid = np.linspace(0, 1, 101)
    errors = [
        ((said @ [a, b, 1 - a - b] - held["target"]) ** 2).mean()
        for a, b in product(grid, grid)
        if a + b <= 1 + 1e-9
    ]
    found = ((predict_with(blend, tmp_path / "values", held) - held["target"]) ** 2).mean()
    assert min(errors) * (1 - 1e-3) < found <= min(errors) * (1 + 1e-6)


@pytest.mark.parametrize("classes", [2, 10])
def test_a_stack_matches_scikit_learn(classes: int, storage: Storage, tmp_path: Path) -> None:
    frame = (load_breast_cancer if classes == 2 else load_digits)(as_frame=True).frame
    names = [name for name in frame.columns if name != "target"][:24]
    fitted, asked = frame.iloc[::2], frame.iloc[1::2]
    bases = {"tree": DecisionTreeClassifier(max_depth=4, random_state=0), "bayes": GaussianNB()}
    final = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    table = table_of(fitted)
    out_of_fold = cross_val_predict(bases, table, features=names, label="target", cv=4)
    columns = [name for name in out_of_fold.schema.names if name != "target"]
    assert len(columns) == (2 if classes == 2 else 20)
    final_estimator = fit_estimator(final, out_of_fold, features=columns, label="target")
    members = [
        stored(storage, name, fit_estimator(base, table, features=names, label="target"))
        for name, base in bases.items()
    ]
    found = predict_with(
        Ensemble.stack(storage, members, final_estimator), tmp_path / "stack", asked
    )
    peer = StackingClassifier(list(bases.items()), final, cv=4)
    expected = peer.fit(fitted[names], fitted["target"]).predict_proba(asked[names])
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- stored ---


@pytest.fixture(scope="module")
def ensemble(three: StoredModels) -> StoredModel:
    blend = Ensemble.blend(three.storage, three.members, table_of(VALIDATION), label="target")
    return store(three.storage, "ensemble", blend.write, blend.signature)


def test_a_table_a_graph_and_another_process_predict_the_same(
    three: StoredModels, ensemble: StoredModel, tmp_path: Path
) -> None:
    features = TEST[SIZES[:6]].to_numpy()
    here = StoredEnsemble(ensemble.fetch(three.storage))(features)
    table = predict(
        StoredEnsemble, three.storage, ensemble, table_of(TEST), keep=["target"]
    ).to_arrow()
    np.testing.assert_allclose(np.array(table["prediction"].to_pylist()), here, atol=1e-12)
    assert table["target"].to_pylist() == TEST["target"].tolist()
    graph = serve.Graph(
        inputs={"features": serve.Array("float64", (6,))},
        nodes={"prediction": serve.LazyModel(StoredEnsemble, three.storage, "ensemble")},
        output="prediction",
    )
    np.testing.assert_allclose(graph({"features": features}), here, atol=1e-12)
    np.save(tmp_path / "features.npy", features)
    code = (
        "import sys, numpy as np; from pathlib import Path; from raysys.models import *\n"
        "folder, work = map(Path, sys.argv[1:])\n"
        "predictions = StoredEnsemble(folder)(np.load(work / 'features.npy'))\n"
        "np.save(work / 'predictions.npy', predictions)"
    )
    folder = ensemble.fetch(three.storage)
    subprocess.run([sys.executable, "-c", code, folder, tmp_path], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "predictions.npy"), here)


def test_a_stored_ensemble_can_be_a_member_and_needs_no_member_files(
    three: StoredModels, tmp_path: Path
) -> None:
    bayes = GaussianNB().fit(TRAIN[SIZES[:6]], TRAIN["target"])
    going = stored(three.storage, "going", bayes)
    mean = Ensemble.mean(three.storage, [going])
    model = store(three.storage, "around", mean.write, mean.signature)
    three.storage.remove(going.model.path)
    outer = Ensemble.mean(
        three.storage, [EnsembleMember(model, StoredEnsemble), three.members[0], three.members[1]]
    )
    found = predict_with(outer, tmp_path / "outer", VALIDATION)[:, 1]
    np.testing.assert_allclose(found, three.probabilities[:, [0, 1, 1]].mean(axis=1), atol=1e-9)


def test_a_changed_file_of_a_member_is_refused(three: StoredModels, ensemble: StoredModel) -> None:
    file = three.storage.fetch(ensemble.path) / "members" / "2" / "trees.ubj"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"\0" if before[-1:] != b"\0" else before[:-1] + b"\1")
    try:
        with pytest.raises(StorageError, match=r"'ensemble' version 1 .* were changed"):
            ensemble.fetch(three.storage)
    finally:
        file.write_bytes(before)
    source = three.storage.fetch(three.members[2].model.path) / "trees.ubj"
    source.write_bytes(before + b"\0")
    try:
        with pytest.raises(StorageError, match=r"'trees' version 1 .* were changed"):
            Ensemble.mean(three.storage, three.members)
    finally:
        source.write_bytes(before)


# --- refused ---


def test_members_with_different_signatures_are_refused(three: StoredModels) -> None:
    storage, (first, *_) = three.storage, three.members
    other = stored(storage, "other", GaussianNB().fit(TRAIN[SIZES[1:7]], TRAIN["target"]))
    with pytest.raises(DataError, match="the inputs of 'm0' and 'other' differ"):
        Ensemble.mean(storage, [first, other])
    named = GaussianNB().fit(TRAIN[SIZES[:6]], np.where(TRAIN["target"], "no", "yes"))
    with pytest.raises(DataError, match=r"the classes of 'm0' and 'named' differ: \[0, 1\]"):
        Ensemble.vote(storage, [first, stored(storage, "named", named)])
    line = Ridge().fit(TRAIN[SIZES[:6]], TRAIN["target"])
    values = stored(storage, "values", line)
    with pytest.raises(DataError, match="cannot vote"):
        Ensemble.vote(storage, [values])
    with pytest.raises(DataError, match="two classes"):
        Ensemble.blend(storage, [values], table_of(VALIDATION), label="target", method="logistic")
    with pytest.raises(DataError, match="needs one or more members"):
        Ensemble.mean(storage, [])
    silent = store(storage, "silent", functools.partial(save_estimator, line), None)
    with pytest.raises(DataError, match="'silent' version 1 names no inputs"):
        Ensemble.mean(storage, [EnsembleMember(silent, StoredEstimator)])

    class Local:
        pass

    with pytest.raises(DataError, match="cannot be imported by name"):
        Ensemble.mean(storage, [EnsembleMember(first.model, Local)])


def test_invalid_labels_and_final_estimators_are_refused(three: StoredModels) -> None:
    held = table_of(VALIDATION.assign(label=VALIDATION["target"] + (VALIDATION.index % 100 == 1)))
    with pytest.raises(DataError, match=r"'label' has a class unknown to the members: 2, not"):
        Ensemble.blend(three.storage, three.members, held, label="label")
    with pytest.raises(DataError, match=r"no such column: \['truth'\]"):
        Ensemble.blend(three.storage, three.members, held, label="truth")
    narrow = LogisticRegression().fit(three.probabilities[:, :2], TRUE)
    with pytest.raises(DataError, match="fitted on 2 columns; 3 members give 3"):
        Ensemble.stack(three.storage, three.members, narrow)
    with pytest.raises(DataError, match=r"has the classes None, not \[0, 1\]"):
        Ensemble.stack(three.storage, three.members, Ridge().fit(three.probabilities, TRUE))


def test_a_stored_estimator_checks_its_features(tmp_path: Path) -> None:
    fitted = GaussianNB().fit(TRAIN[SIZES[:3]], TRAIN["target"])
    save_estimator(fitted, tmp_path)
    found = StoredEstimator(tmp_path)
    expected = fitted.predict_proba(VALIDATION[SIZES[:3]])
    columns = {name: VALIDATION[name].to_numpy() for name in reversed(SIZES)}
    for given in (VALIDATION, columns, VALIDATION[SIZES[:3]].to_numpy()):
        np.testing.assert_array_equal(found(given), expected)
    with pytest.raises(DataError, match=r"shape \(190, 30\); expected \(rows, 3\)"):
        found(VALIDATION[SIZES].to_numpy())
    with pytest.raises(DataError, match=r"missing features: \['mean radius'\]"):
        found(VALIDATION[SIZES[1:]])
    with pytest.raises(DataError, match="LinearSVC has no predict_proba"):
        save_estimator(LinearSVC().fit(TRAIN[SIZES], TRAIN["target"]), tmp_path)
    with pytest.raises(DataError, match="fitted without feature names"):
        save_estimator(GaussianNB().fit(TRAIN[SIZES].to_numpy(), TRAIN["target"]), tmp_path)
    facts = tmp_path / "estimator.json"
    facts.write_text(facts.read_text().replace('"scikit_learn": "1.', '"scikit_learn": "0.'))
    with pytest.raises(StorageError, match=r"stored by scikit-learn 0\."):
        StoredEstimator(tmp_path)
