import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from raysys.data import Table
from raysys.errors import DataError
from raysys.features import Featurizer, Numeric
from tests.features.examples import ALL, rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_table_is_featurized_with_what_is_kept() -> None:
    given = rows()
    table = Table.from_arrow(given, 110)
    fitted = Featurizer(ALL).fit(table)
    assert (fitted.fitted_on, fitted.rows) == (table.fingerprint, 300)
    made = fitted.transform(table, keep=["late", "title"]).arrow()
    assert made.column_names == ["late", "title", *fitted.names]
    assert made["late"].to_pylist() == given["late"].to_pylist()
    found = np.stack([made[name].to_numpy() for name in fitted.names], 1)
    expected = np.stack([fitted.one(row) for row in given.to_pylist()])
    assert np.ascontiguousarray(found).tobytes() == expected.tobytes()

    unseen = {"when": dt.datetime(2040, 1, 1), "tail": "new", "origin": "MUC"}
    alone = Table.from_arrow(pa.Table.from_pylist([unseen], given.schema))
    [row] = fitted.transform(alone).arrow().to_pylist()
    np.testing.assert_array_equal(np.array(list(row.values()), np.float32), fitted.one(unseen))


def test_training_features_differ_in_target_means_only() -> None:
    table = Table.from_arrow(rows(), 110)
    fitted, training = Featurizer(ALL).fit_transform(table)
    assert fitted.fitted_on == table.fingerprint
    np.testing.assert_equal(fitted.states, Featurizer(ALL).fit(table).states)
    made, served = training.arrow(), fitted.transform(table).arrow()
    different = [name for name in fitted.names if not made[name].equals(served[name])]
    # NaN, of what is not imputed, equals nothing.
    plain = [n for n in different if np.isfinite(served[n].to_numpy()).all()]
    assert plain == ["origin_mean_late", "carrier_mean_late", "tail_mean_delay"]
    for name in set(different) - set(plain):
        np.testing.assert_array_equal(made[name].to_numpy(), served[name].to_numpy())


def test_what_cannot_be_kept_is_refused() -> None:
    table = Table.from_arrow(pa.table({"x": [1.0], "id": [7]}))
    fitted = Featurizer([Numeric(["x"])]).fit(table)
    with pytest.raises(DataError, match="two columns would be named 'x'"):
        fitted.transform(table, keep=["x"])
    with pytest.raises(DataError, match="no column 'label'; it has: x, id"):
        fitted.transform(table, keep=["label"])
    with pytest.raises(DataError, match="no column 'x'; it has: id"):
        fitted.transform(table.select(["id"]))
