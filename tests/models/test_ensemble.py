"""Several stored models as one, held against scikit-learn and brute force."""

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
    Member,
    ModelStore,
    StoredEnsemble,
    StoredEstimator,
    StoredModel,
    answers,
    estimator_signature,
    save_estimator,
)
from raysys.storage import Storage
from raysys.tracking import open_run
from raysys.train import cross_predict, fit_estimator
from tests.models.members import Trees

pytestmark = pytest.mark.usefixtures("ray_cluster")

CANCER = load_breast_cancer(as_frame=True).frame
SIZES = [name for name in CANCER.columns if name != "target"]
TRAIN, HELD, ASKED = (CANCER.iloc[start::3] for start in range(3))
TRUE = HELD["target"].to_numpy()


def table_of(frame: pd.DataFrame) -> Table:
    return Table.from_arrow(pa.Table.from_pandas(frame, preserve_index=False), 80)


def store(storage: Storage, name: str, write: Any, signature: dict[str, Any] | None) -> StoredModel:
    run = open_run(storage, "ensembles", name, settings={})
    models = ModelStore(storage)
    saved = models.save(
        name, write, manifest={"signature": signature}, run=run, path=f"models/{name}"
    )
    run.end("FINISHED", {})
    models.promote(saved)
    return saved


def stored(storage: Storage, name: str, estimator: Any) -> Member:
    write = functools.partial(save_estimator, estimator)
    model = store(storage, name, write, estimator_signature(estimator))
    return Member(model, StoredEstimator)


def write_trees(booster: bytes, folder: Path) -> None:
    (folder / "trees.ubj").write_bytes(booster)


@dataclass(frozen=True)
class Three:
    """Models that learned from TRAIN: two estimators, and trees that answer with `(n,)`."""

    storage: Storage
    members: list[Member]
    said: np.ndarray  # chance of the second class of HELD (n, 3)


@pytest.fixture(scope="module")
def three(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Three:
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
    members.append(Member(store(storage, "trees", write, signature), Trees))
    said = [one.predict_proba(HELD[few])[:, 1] for one in estimators]
    said.append(booster.inplace_predict(HELD[few].to_numpy()))
    return Three(storage, members, np.stack(said, axis=1).astype(float))


def ask(ensemble: Ensemble, folder: Path, frame: pd.DataFrame) -> np.ndarray:
    """Write an ensemble and ask what was written."""
    folder.mkdir()
    ensemble.write(folder)
    return StoredEnsemble(folder)(frame[ensemble.signature["inputs"]].to_numpy())


def test_a_mean_and_a_vote_are_the_members(three: Three, tmp_path: Path) -> None:
    mean = ask(Ensemble.mean(three.storage, three.members), tmp_path / "mean", HELD)
    np.testing.assert_allclose(mean[:, 1], three.said.mean(axis=1), atol=1e-7)
    np.testing.assert_allclose(mean.sum(axis=1), 1)
    vote = ask(Ensemble.vote(three.storage, three.members), tmp_path / "vote", HELD)
    np.testing.assert_allclose(vote[:, 1], (three.said > 0.5).mean(axis=1))


def test_no_convex_weights_have_a_smaller_loss(three: Three, tmp_path: Path) -> None:
    blend = Ensemble.blend(three.storage, three.members, table_of(HELD), label="target")
    found = log_loss(TRUE, ask(blend, tmp_path / "blend", HELD)[:, 1])
    grid = np.linspace(0, 1, 41)
    losses = [
        log_loss(TRUE, np.clip(three.said @ [a, b, 1 - a - b], 0, 1))
        for a, b in product(grid, grid)
        if a + b <= 1 + 1e-9
    ]
    assert min(losses) - 1e-4 < found <= min(losses) + 1e-6
    assert found < min(log_loss(TRUE, three.said[:, at]) for at in range(3))


def test_logistic_weights_have_the_highest_likelihood(three: Three, tmp_path: Path) -> None:
    blend = Ensemble.blend(
        three.storage, three.members, table_of(HELD), label="target", how="logistic"
    )
    chances = np.clip(three.said, 1e-15, 1 - 1e-15)
    odds = np.log(chances) - np.log1p(-chances)

    def surprise(weights: np.ndarray) -> float:
        total = odds @ weights[:3] + weights[3]
        return float((np.logaddexp(0, total) - TRUE * total).mean())

    best = minimize(surprise, np.zeros(4), options={"gtol": 1e-9})
    found = ask(blend, tmp_path / "logistic", HELD)[:, 1]
    assert log_loss(TRUE, found) == pytest.approx(best.fun, abs=1e-4)


def test_values_are_blended_by_squares(storage: Storage, tmp_path: Path) -> None:
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
    found = ((ask(blend, tmp_path / "values", held) - held["target"]) ** 2).mean()
    assert min(errors) * (1 - 1e-3) < found <= min(errors) * (1 + 1e-6)


@pytest.mark.parametrize("classes", [2, 10])
def test_a_stack_is_scikit_learns(classes: int, storage: Storage, tmp_path: Path) -> None:
    frame = (load_breast_cancer if classes == 2 else load_digits)(as_frame=True).frame
    names = [name for name in frame.columns if name != "target"][:24]
    fitted, asked = frame.iloc[::2], frame.iloc[1::2]
    bases = {"tree": DecisionTreeClassifier(max_depth=4, random_state=0), "bayes": GaussianNB()}
    final = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    table = table_of(fitted)
    out_of_fold = cross_predict(bases, table, features=names, label="target", folds=4)
    columns = [name for name in out_of_fold.schema.names if name != "target"]
    assert len(columns) == (2 if classes == 2 else 20)
    meta = fit_estimator(final, out_of_fold, features=columns, label="target")
    members = [
        stored(storage, name, fit_estimator(base, table, features=names, label="target"))
        for name, base in bases.items()
    ]
    found = ask(Ensemble.stack(storage, members, meta), tmp_path / "stack", asked)
    peer = StackingClassifier(list(bases.items()), final, cv=4)
    wanted = peer.fit(fitted[names], fitted["target"]).predict_proba(asked[names])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


# --- stored ---


@pytest.fixture(scope="module")
def kept(three: Three) -> StoredModel:
    blend = Ensemble.blend(three.storage, three.members, table_of(HELD), label="target")
    return store(three.storage, "kept", blend.write, blend.signature)


def test_a_table_a_graph_and_another_process_answer_alike(
    three: Three, kept: StoredModel, tmp_path: Path
) -> None:
    features = ASKED[SIZES[:6]].to_numpy()
    here = StoredEnsemble(kept.fetch(three.storage))(features)
    made = answers(StoredEnsemble, three.storage, kept, table_of(ASKED), keep=["target"]).to_arrow()
    np.testing.assert_allclose(np.array(made["answer"].to_pylist()), here, atol=1e-12)
    assert made["target"].to_pylist() == ASKED["target"].tolist()
    graph = serve.Graph(
        inputs={"features": serve.Array("float64", (6,))},
        nodes={"answer": serve.LazyModel(StoredEnsemble, three.storage, "kept")},
        output="answer",
    )
    np.testing.assert_allclose(graph({"features": features}), here, atol=1e-12)
    np.save(tmp_path / "features.npy", features)
    code = (
        "import sys, numpy as np; from pathlib import Path; from raysys.models import *\n"
        "folder, work = map(Path, sys.argv[1:])\n"
        "made = StoredEnsemble(folder)(np.load(work / 'features.npy'))\n"
        "np.save(work / 'answers.npy', made)"
    )
    folder = kept.fetch(three.storage)
    subprocess.run([sys.executable, "-c", code, folder, tmp_path], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "answers.npy"), here)


def test_it_needs_its_members_no_more_and_can_be_a_member(three: Three, tmp_path: Path) -> None:
    bayes = GaussianNB().fit(TRAIN[SIZES[:6]], TRAIN["target"])
    going = stored(three.storage, "going", bayes)
    mean = Ensemble.mean(three.storage, [going])
    model = store(three.storage, "around", mean.write, mean.signature)
    three.storage.remove(going.model.path)
    outer = Ensemble.mean(
        three.storage, [Member(model, StoredEnsemble), three.members[0], three.members[1]]
    )
    found = ask(outer, tmp_path / "outer", HELD)[:, 1]
    np.testing.assert_allclose(found, three.said[:, [0, 1, 1]].mean(axis=1), atol=1e-9)


def test_a_changed_file_of_a_member_is_refused(three: Three, kept: StoredModel) -> None:
    file = three.storage.fetch(kept.path) / "members" / "2" / "trees.ubj"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"\0" if before[-1:] != b"\0" else before[:-1] + b"\1")
    try:
        with pytest.raises(StorageError, match=r"'kept' version 1 .* are not those"):
            kept.fetch(three.storage)
    finally:
        file.write_bytes(before)
    source = three.storage.fetch(three.members[2].model.path) / "trees.ubj"
    source.write_bytes(before + b"\0")
    try:
        with pytest.raises(StorageError, match=r"'trees' version 1 .* are not those"):
            Ensemble.mean(three.storage, three.members)
    finally:
        source.write_bytes(before)


# --- refused ---


def test_members_that_do_not_fit_are_refused(three: Three) -> None:
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
        Ensemble.blend(storage, [values], table_of(HELD), label="target", how="logistic")
    with pytest.raises(DataError, match="give one or more"):
        Ensemble.mean(storage, [])
    silent = store(storage, "silent", functools.partial(save_estimator, line), None)
    with pytest.raises(DataError, match="'silent' version 1 names no inputs"):
        Ensemble.mean(storage, [Member(silent, StoredEstimator)])

    class Local:
        pass

    with pytest.raises(DataError, match="cannot be imported by name"):
        Ensemble.mean(storage, [Member(first.model, Local)])


def test_labels_and_metas_that_do_not_fit_are_refused(three: Three) -> None:
    held = table_of(HELD.assign(label=HELD["target"] + (HELD.index % 100 == 1)))
    with pytest.raises(DataError, match=r"'label' has a value that no member knows: 2, not"):
        Ensemble.blend(three.storage, three.members, held, label="label")
    with pytest.raises(DataError, match=r"\['truth'\] are no columns"):
        Ensemble.blend(three.storage, three.members, held, label="truth")
    narrow = LogisticRegression().fit(three.said[:, :2], TRUE)
    with pytest.raises(DataError, match="fitted on 2 columns; 3 members give 3"):
        Ensemble.stack(three.storage, three.members, narrow)
    with pytest.raises(DataError, match=r"knows the classes None, not \[0, 1\]"):
        Ensemble.stack(three.storage, three.members, Ridge().fit(three.said, TRUE))


def test_an_estimator_answers_for_its_own_features(tmp_path: Path) -> None:
    fitted = GaussianNB().fit(TRAIN[SIZES[:3]], TRAIN["target"])
    save_estimator(fitted, tmp_path)
    found = StoredEstimator(tmp_path)
    wanted = fitted.predict_proba(HELD[SIZES[:3]])
    columns = {name: HELD[name].to_numpy() for name in reversed(SIZES)}
    for given in (HELD, columns, HELD[SIZES[:3]].to_numpy()):
        np.testing.assert_array_equal(found(given), wanted)
    with pytest.raises(DataError, match=r"shape \(190, 30\); give \(rows, 3\)"):
        found(HELD[SIZES].to_numpy())
    with pytest.raises(DataError, match=r"\['mean radius'\] are missing"):
        found(HELD[SIZES[1:]])
    with pytest.raises(DataError, match="LinearSVC gives no probabilities"):
        save_estimator(LinearSVC().fit(TRAIN[SIZES], TRAIN["target"]), tmp_path)
    with pytest.raises(DataError, match="fitted without names"):
        save_estimator(GaussianNB().fit(TRAIN[SIZES].to_numpy(), TRAIN["target"]), tmp_path)
    facts = tmp_path / "estimator.json"
    facts.write_text(facts.read_text().replace('"scikit_learn": "1.', '"scikit_learn": "0.'))
    with pytest.raises(StorageError, match=r"stored by scikit-learn 0\."):
        StoredEstimator(tmp_path)
