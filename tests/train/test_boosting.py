"""What settings of boosting become in XGBoost's terms."""

import json

import numpy as np
import pytest
import xgboost
from pydantic import ValidationError

from raysys.train import BoostSettings


def grown(settings: BoostSettings) -> dict[str, str]:
    """What XGBoost made of the settings."""
    rng = np.random.default_rng(0)
    data = xgboost.DMatrix(rng.normal(size=(50, 4)), rng.random(50))
    booster = xgboost.train(settings.params(), data, 1)
    learner = json.loads(booster.save_config())["learner"]
    return learner["gradient_booster"]["tree_train_param"]


def test_sampling_and_bins_reach_the_trees() -> None:
    settings = BoostSettings(
        objective="binary:logistic", colsample_bytree=0.9, colsample_bynode=0.3, max_bin=128
    )
    found = grown(settings)
    assert float(found["colsample_bytree"]) == pytest.approx(0.9)
    assert float(found["colsample_bynode"]) == pytest.approx(0.3)
    assert int(found["max_bin"]) == 128


def test_defaults_of_nodes_and_bins_are_those_of_xgboost() -> None:
    found = grown(BoostSettings(objective="binary:logistic"))
    assert (float(found["colsample_bynode"]), int(found["max_bin"])) == (1.0, 256)


@pytest.mark.parametrize("wrong", [{"colsample_bynode": 0}, {"max_bin": 1}])
def test_values_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        BoostSettings(**wrong)
