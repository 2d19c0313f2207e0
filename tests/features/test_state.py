import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from raysys.errors import StorageError
from raysys.features import FittedFeaturizer
from tests.features.examples import ALL, rows
from tests.features.local import fit

FORMAT_1 = Path(__file__).parent / "format_1"


@pytest.mark.parametrize("cuts", [(150,), (0, 0, 1, 7, 100, 299)])
def test_a_fit_does_not_depend_on_the_blocks(cuts: tuple[int, ...]) -> None:
    exact = [t for t in ALL if getattr(t, "target", "late") == "late"]
    assert len(exact) == len(ALL) - 1
    uncut, cut = fit(rows(), *exact), fit(rows(), *exact, cuts=cuts)
    np.testing.assert_equal(cut.states, uncut.states)
    # Sums of targets that are not integers are rounded in block order.
    pair = fit(rows(), *ALL), fit(rows(), *ALL, cuts=cuts)
    features = [
        np.stack([f.transform_one(row, ignore_unknown=True) for row in rows().to_pylist()])
        for f in pair
    ]
    np.testing.assert_allclose(*features, rtol=1e-6)


def test_a_loaded_featurizer_gives_the_same_features(tmp_path: Path) -> None:
    fitted = fit(rows(), *ALL)
    fitted.save(tmp_path / "new" / "folder")
    loaded = FittedFeaturizer.load(tmp_path / "new" / "folder")
    copied = pickle.loads(pickle.dumps(fitted))
    for copy in (loaded, copied):
        assert copy.definition == fitted.definition
        assert (copy.feature_names, copy.inputs) == (fitted.feature_names, fitted.inputs)
        assert (copy.fitted_on, copy.rows) == ("local", 300)
        for request in [*rows(50).to_pylist(), {}]:
            assert (
                copy.transform_one(request, ignore_unknown=True).tobytes()
                == fitted.transform_one(request, ignore_unknown=True).tobytes()
            )
    content = json.loads((tmp_path / "new" / "folder" / "featurizer.json").read_text())
    assert content["inputs"]["when"] == "timestamp[us]"
    assert content["names"] == list(fitted.feature_names)


def test_format_1_loads_and_gives_the_same_features() -> None:
    fitted = FittedFeaturizer.load(FORMAT_1)
    stored = json.loads((FORMAT_1 / "answers.json").read_text())
    assert list(fitted.feature_names) == stored["names"]
    for request, answer in zip(stored["requests"], stored["answers"], strict=True):
        expected = np.array([np.nan if value is None else value for value in answer])
        # NumPy's log1p may differ in the last bit of a float64 between kinds of CPU.
        np.testing.assert_allclose(
            fitted.transform_one(request, ignore_unknown=True), expected, rtol=2e-7, atol=1e-7
        )


def test_an_unreadable_featurizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"featurizer\.json is missing"):
        FittedFeaturizer.load(tmp_path)
    fit(rows(), *ALL).save(tmp_path)
    file = tmp_path / "featurizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 3}))
    with pytest.raises(StorageError, match="has format 3, and this raysys reads up to 2: upgrade"):
        FittedFeaturizer.load(tmp_path)
