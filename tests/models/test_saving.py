"""Models of every kind saved and loaded, in this process and in another one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import xgboost
from sklearn.linear_model import LogisticRegression
from torch import nn

from raysys import models, serve
from raysys.data import Table
from raysys.errors import DataError, StorageError
from raysys.features import Featurizer, FittedFeaturizer, Numeric, OneHot
from raysys.identity._code_digest import forget_sources
from raysys.models import Ensemble, EnsembleMember, ModelFiles, Predictor
from raysys.storage import Storage
from raysys.train import BoostedModel
from raysys.train.boosting._feature_columns import FeatureEncoding
from tests.models import nets

X = np.random.default_rng(0).normal(size=(40, 3))
KINDS = np.array(["low", "high"])[(X.sum(axis=1) > 0).astype(int)]
NAMES = ["a", "b", "mean c"]


def net() -> nets.Net:
    torch.manual_seed(0)
    module = nets.Net()
    module.layers(torch.from_numpy(X).float())  # running statistics
    return module


def expected_of(module: nets.Net) -> np.ndarray:
    with torch.no_grad():
        return module.eval().predict(torch.from_numpy(X).float()).numpy()


def boosted(matrix: np.ndarray, names: list[str]) -> BoostedModel:
    data = xgboost.DMatrix(matrix, (KINDS == "low").astype(int), feature_names=names)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, 5)
    encoding = FeatureEncoding(tuple(names), {}, ["high", "low"])
    return BoostedModel(booster, encoding, "binary:logistic")


def written(model: Any, folder: Path, **options: Any) -> Predictor:
    """A model that was written and loaded."""
    folder.mkdir(exist_ok=True)
    ModelFiles.of(model, **options).write(folder)
    return Predictor(folder)


def test_a_module_is_called_by_its_arguments_or_by_columns(
    storage: Storage, tmp_path: Path
) -> None:
    module, x = net(), X[::-1].copy()
    expected = expected_of(module)[::-1]
    first = models.save(module, "net", storage)
    loaded = models.load("net", storage)
    assert (loaded.inputs, loaded.classes) == (["x"], None)
    assert repr(loaded) == "Predictor(Net, 1 inputs)"
    assert isinstance(loaded.model, nets.Net)
    assert not loaded.model.training
    np.testing.assert_array_equal(loaded(x), expected)
    np.testing.assert_array_equal(loaded({"x": x}), expected)
    np.testing.assert_array_equal(loaded({"x": list(x)}), expected)
    models.save(module, "net", storage, inputs=NAMES, classes=["no", "yes"])
    by_name = models.load("net", storage, version=2)
    assert by_name.classes == ["no", "yes"]
    columns = {name: x[:, at] for at, name in enumerate(NAMES)}
    np.testing.assert_array_equal(by_name(columns), expected)
    np.testing.assert_array_equal(by_name(pd.DataFrame(columns)), expected)
    np.testing.assert_array_equal(by_name(x), expected)
    # An integer reaches an embedding as one.
    scorer = written(nets.Scorer(), tmp_path / "scorer")
    assert scorer({"film": np.arange(5), "user": np.arange(5)}).shape == (5,)
    np.testing.assert_array_equal(models.load(first, storage)(x), expected)
    with pytest.raises(StorageError, match=r"no model 'nett' \(did you mean 'net'\?\) with alias"):
        models.load("nett", storage)
    with pytest.raises(StorageError, match=r"'net' version 7 .* versions: 1"):
        models.load("net", storage, version=7)


def test_a_part_of_a_module_needs_no_code_of_its_own(tmp_path: Path) -> None:
    module = net()
    loaded = written(module, tmp_path, method="layers", inputs=NAMES)
    assert type(loaded.model) is nn.Sequential
    with torch.no_grad():
        expected = module.eval().layers(torch.from_numpy(X).float()).numpy()
    np.testing.assert_array_equal(loaded(X), expected)


def test_wrapped_and_parametrized_modules_are_stored_as_what_they_compute(tmp_path: Path) -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    loaded = written(nn.DataParallel(normed), tmp_path / "normed")
    assert type(loaded.model) is nn.Linear
    with torch.no_grad():  # the user's own module is unchanged
        expected = normed(torch.from_numpy(X).float()).numpy()
    np.testing.assert_allclose(loaded(X), expected, rtol=1e-6)
    half = nn.Linear(3, 2).to(torch.bfloat16)
    half.scale = np.arange(3)  # data beside the tensors
    loaded = written(half, tmp_path / "half")
    assert loaded(X).dtype == np.float32
    np.testing.assert_array_equal(loaded.model.scale, np.arange(3))


class InThisTest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_what_another_process_cannot_load_is_refused_when_it_is_saved(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with_lambda = nn.Sequential(nn.Linear(3, 3))
    with_lambda[0].hook = lambda x: x
    main = nn.Sequential(InThisTest())
    monkeypatch.setattr(InThisTest, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "InThisTest", InThisTest, raising=False)
    for module, reason in (
        (Local(), "Local cannot be stored: Local: .*local object"),
        (nn.Sequential(Local()), r"its part 0 \(Local\)"),
        (with_lambda, "the attribute 'hook' of its part 0"),
        (main, "InThisTest is defined in __main__, a script or notebook"),
        (nn.LazyLinear(3), "parameters without a shape: call it with a batch first"),
        (torch.jit.script(nn.Linear(2, 2)), "is TorchScript: store the module"),
        (nets.Net, "Net is a class: give a trained instance"),
        ({"state": 1}, "dict cannot be stored: give a FitResult"),
    ):
        with pytest.raises(DataError, match=reason):
            models.save(module, "refused", storage)
    assert storage.names("models/refused") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "predikt"}, "Net has no method or part 'predikt'"),
        ({"method": "forward", "inputs": NAMES}, r"requires the arguments \['x', 'y'\]"),
        ({"inputs": NAMES, "featurizer": 1}, "the featurizer names the inputs"),
    ],
)
def test_impossible_calls_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ModelFiles.of(net(), **options)


def test_unfitting_batches_and_outputs_are_refused(tmp_path: Path) -> None:
    loaded = written(net(), tmp_path / "net", inputs=NAMES)
    with pytest.raises(DataError, match=r"missing features: 'mean c' \(did you mean 'mean cc'\?\)"):
        loaded({"a": X[:, 0], "b": X[:, 1], "mean cc": X[:, 2]})
    with pytest.raises(DataError, match=r"shape \(40, 2\); expected \(rows, 3\)"):
        loaded(X[:, :2])
    with pytest.raises(DataError, match="Net takes numbers, not <U"):
        loaded(dict.fromkeys(NAMES, KINDS))
    loss = written(net(), tmp_path / "loss", method="forward")
    with pytest.raises(DataError, match=r"Net.forward returned \(\) for 40 rows: store it with"):
        loss({"x": X, "y": X[:, :2]})


# --- other processes ---


def test_another_process_loads_by_import_path_and_refuses_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    source = project / "their_nets.py"
    shutil.copy(nets.__file__, source)
    monkeypatch.syspath_prepend(project)
    import their_nets  # type: ignore[import-not-found]

    torch.manual_seed(0)
    folder = tmp_path / "theirs"
    here = written(their_nets.Net(), folder)(X)
    np.save(elsewhere / "x.npy", X)
    code = (
        "import numpy as np; from pathlib import Path; from raysys.models import Predictor\n"
        f"np.save('y.npy', Predictor(Path({str(folder)!r}))(np.load('x.npy')))"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=os.environ | paths, check=True)
    np.testing.assert_array_equal(np.load(elsewhere / "y.npy"), here)

    def reloaded(text: str) -> None:
        source.write_text(text)
        sys.modules.pop("their_nets", None)
        forget_sources()

    before = source.read_text()
    reloaded(before.replace("2 * x", "2 * x  # a comment"))
    np.testing.assert_array_equal(Predictor(folder)(X), here)
    reloaded(before.replace("2 * x", "3 * x"))
    with pytest.raises(StorageError, match=r"another source of their_nets\.Net or of what it uses"):
        Predictor(folder)
    np.testing.assert_allclose(Predictor(folder, check_code=False)(X), here * 1.5, rtol=1e-6)
    sys.modules.pop("their_nets")
    source.unlink()
    forget_sources()
    with pytest.raises(StorageError, match=r"cannot import: .*It was in .*/project: add"):
        Predictor(folder)


@pytest.mark.parametrize(
    ("file", "package"), [("model/module.json", "torch"), ("model/boosted.json", "xgboost")]
)
def test_releases_are_compared(
    file: str, package: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net() if package == "torch" else boosted(X, NAMES)
    ModelFiles.of(model).write(tmp_path)
    metadata = json.loads((tmp_path / file).read_text())
    version = metadata[package]
    (tmp_path / file).write_text(json.dumps(metadata | {package: "99.1.0"}))
    with pytest.raises(StorageError, match=rf"stored by {package} 99\.1\.0, and {version[:4]}"):
        Predictor(tmp_path)
    (tmp_path / file).write_text(json.dumps(metadata | {package: "1.2"}))
    Predictor(tmp_path)
    assert f"was stored by {package} 1.2 and is read by {version}" in caplog.text


def test_a_file_cannot_run_code_that_it_does_not_name(tmp_path: Path) -> None:
    ModelFiles.of(net()).write(tmp_path)

    class Attack(nn.Module):
        def __reduce__(self) -> Any:
            return os.system, ("touch attacked",)

    torch.save(Attack(), tmp_path / "model" / "module.pt")
    with pytest.raises(StorageError, match="cannot load the module"):
        Predictor(tmp_path)


# --- trees, estimators, featurizers, ensembles, graphs ---


@pytest.fixture(scope="module")
def rows() -> Table:
    columns = {name: X[:, at] for at, name in enumerate(NAMES)}
    return Table.from_arrow(pa.table({**columns, "city": ["Ulm", "Rom"] * 20, "kind": KINDS}), 25)


@pytest.mark.usefixtures("ray_cluster")
def test_a_featurizer_travels_with_every_kind_of_model(storage: Storage, rows: Table) -> None:
    featurizer = Featurizer(
        transforms=[Numeric(columns=NAMES), OneHot(columns=["city"])]
    ).fit(rows)  # fmt: skip
    raw = rows.to_arrow().drop_columns("kind").to_pandas()
    features = featurizer.transform_batch({name: raw[name].to_numpy() for name in raw})
    names = list(featurizer.feature_names)
    frame = pd.DataFrame(features, columns=names)
    trees = boosted(features, names)
    line = LogisticRegression().fit(frame, KINDS)
    module = nn.Sequential(nn.Linear(len(names), 2), nn.Softmax(1))
    with torch.no_grad():
        expected = {
            "trees": trees(features), "line": line.predict_proba(frame),
            "module": module(torch.from_numpy(features)).numpy(),
        }  # fmt: skip
    members = []
    for name, model in (("trees", trees), ("line", line), ("module", module)):
        options = {"classes": ["high", "low"]} if name == "module" else {}
        stored = models.save(model, name, storage, featurizer=featurizer, **options)
        members.append(EnsembleMember(stored, Predictor))
        loaded = models.load(name, storage)
        assert loaded.inputs == [*NAMES, "city"]
        assert loaded.classes == ["high", "low"]
        assert isinstance(loaded.featurizer, FittedFeaturizer)
        np.testing.assert_allclose(loaded(raw), expected[name], rtol=1e-5)
    table = models.predict(Predictor, storage, stored, rows, keep=["kind"]).to_arrow()
    assert table["kind"].to_pylist() == KINDS.tolist()
    np.testing.assert_allclose(
        np.array(table["prediction"].to_pylist()), expected["module"], rtol=1e-5
    )
    mean = sum(expected.values()) / 3
    models.save(Ensemble.mean(storage, members), "mean", storage)
    np.testing.assert_allclose(models.load("mean", storage)(raw), mean, rtol=1e-5)
    graph = serve.Graph(
        inputs={"city": serve.Array("str"), **{name: serve.Array("float64") for name in NAMES}},
        nodes={"probabilities": serve.LazyPredictor(storage, "mean")},
        output="probabilities",
    )
    inputs = {name: raw[name].to_numpy() for name in [*NAMES, "city"]}
    np.testing.assert_allclose(graph(inputs), mean, rtol=1e-5)
    assert graph.classes == ["high", "low"]
    with pytest.raises(DataError, match="features that the featurizer does not give: 'a', 'b'"):
        ModelFiles.of(boosted(X, NAMES), featurizer=Featurizer(
            transforms=[OneHot(columns=["city"])]
        ).fit(rows))  # fmt: skip
