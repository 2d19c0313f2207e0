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
def test_the_blocks_do_not_matter(cuts: tuple[int, ...]) -> None:
    exact = [made for made in ALL if getattr(made, "target", "late") == "late"]
    assert len(exact) == len(ALL) - 1
    whole, cut = fit(rows(), *exact), fit(rows(), *exact, cuts=cuts)
    np.testing.assert_equal(cut.states, whole.states)
    # Sums of targets that are no integers are rounded in block order.
    whole, cut = fit(rows(), *ALL), fit(rows(), *ALL, cuts=cuts)
    made = [np.stack([f.one(row) for row in rows().to_pylist()]) for f in (whole, cut)]
    np.testing.assert_allclose(*made, rtol=1e-6)


def test_what_was_saved_answers_as_before(tmp_path: Path) -> None:
    fitted = fit(rows(), *ALL)
    fitted.save(tmp_path / "made" / "here")
    loaded = FittedFeaturizer.load(tmp_path / "made" / "here")
    copied = pickle.loads(pickle.dumps(fitted))
    for other in (loaded, copied):
        assert other.definition == fitted.definition
        assert (other.names, other.inputs) == (fitted.names, fitted.inputs)
        assert (other.fitted_on, other.rows) == ("local", 300)
        for request in [*rows(50).to_pylist(), {}]:
            assert other.one(request).tobytes() == fitted.one(request).tobytes()
    content = json.loads((tmp_path / "made" / "here" / "featurizer.json").read_text())
    assert content["inputs"]["when"] == "timestamp[us]"
    assert content["names"] == list(fitted.names)


def test_format_1_is_read_and_answers_as_it_did() -> None:
    fitted = FittedFeaturizer.load(FORMAT_1)
    known = json.loads((FORMAT_1 / "answers.json").read_text())
    assert list(fitted.names) == known["names"]
    for request, answer in zip(known["requests"], known["answers"], strict=True):
        expected = np.array([np.nan if value is None else value for value in answer])
        # NumPy's log1p may differ in the last bit of a float64 between kinds of CPU.
        np.testing.assert_allclose(fitted.one(request), expected, rtol=2e-7, atol=1e-7)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"featurizer\.json is not there"):
        FittedFeaturizer.load(tmp_path)
    fit(rows(), *ALL).save(tmp_path)
    file = tmp_path / "featurizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(StorageError, match="has format 2, and this raysys reads up to 1: upgrade"):
        FittedFeaturizer.load(tmp_path)
