import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from raysys.data import Table
from raysys.errors import DataError
from raysys.features import Featurizer, Numeric
from tests.features.examples import ALL, rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_table_is_transformed_with_kept_columns() -> None:
    source = rows()
    table = Table.from_arrow(source, 110)
    fitted = Featurizer(ALL).fit(table)
    assert (fitted.fitted_on, fitted.rows) == (table.fingerprint(), 300)
    assert repr(fitted).endswith("features, 300 rows>")
    features = fitted.transform(table, keep=["late", "title"]).to_arrow()
    assert features.column_names == ["late", "title", *fitted.feature_names]
    assert features["late"].to_pylist() == source["late"].to_pylist()
    matrix = np.stack([features[name].to_numpy() for name in fitted.feature_names], 1)
    expected = np.stack(
        [fitted.transform_one(row, ignore_unknown=True) for row in source.to_pylist()]
    )
    assert np.ascontiguousarray(matrix).tobytes() == expected.tobytes()

    unseen = {"when": dt.datetime(2040, 1, 1), "tail": "new", "origin": "MUC"}
    single = Table.from_arrow(pa.Table.from_pylist([unseen], source.schema))
    [row] = fitted.transform(single).to_arrow().to_pylist()
    np.testing.assert_array_equal(
        np.array(list(row.values()), np.float32), fitted.transform_one(unseen)
    )


def test_training_features_differ_in_target_means_only() -> None:
    table = Table.from_arrow(rows(), 110)
    fitted, training = Featurizer(ALL).fit_transform(table)
    assert fitted.fitted_on == table.fingerprint()
    np.testing.assert_equal(fitted.states, Featurizer(ALL).fit(table).states)
    safe, served = training.to_arrow(), fitted.transform(table).to_arrow()
    different = [name for name in fitted.feature_names if not safe[name].equals(served[name])]
    # Without imputation there is NaN, which does not equal itself.
    plain = [n for n in different if np.isfinite(served[n].to_numpy()).all()]
    assert plain == ["origin_mean_late", "carrier_mean_late", "tail_mean_delay"]
    for name in set(different) - set(plain):
        np.testing.assert_array_equal(safe[name].to_numpy(), served[name].to_numpy())


def test_invalid_columns_to_keep_are_refused() -> None:
    table = Table.from_arrow(pa.table({"x": [1.0], "id": [7]}))
    fitted = Featurizer([Numeric(["x"])]).fit(table)
    with pytest.raises(DataError, match="two columns would be named 'x'"):
        fitted.transform(table, keep=["x"])
    with pytest.raises(DataError, match="no column 'label'; it has: x, id"):
        fitted.transform(table, keep=["label"])
    with pytest.raises(DataError, match="no column 'x'; it has: id"):
        fitted.transform(table.select(["id"]))
