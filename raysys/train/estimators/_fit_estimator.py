"""Whatever has a fit method, fitted and cross-validated on the cluster."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from joblib import parallel_config
from threadpoolctl import threadpool_limits

from raysys import cluster
from raysys.errors import DataError
from raysys.train.estimators._table_frame import Columns, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raysys.data import Table


def fit_estimator(
    estimator: Any,
    table: Table,
    *,
    features: Sequence[str],
    label: str,
    weights: str | None = None,
    seed: int = 0,
    cpus: int = 1,
) -> Any:
    """Fit a scikit-learn estimator, or anything like one, in a task.

    Loops over `n_jobs` (a search's candidates and folds, a forest's trees, the members of a
    BaggingClassifier) become tasks over the whole cluster if n_jobs is not set, or what it says.
    The rows are put into the object store once, and mapped by all of them.

    The estimator is given a pandas frame with the features' names; columns of text come as
    categories, numbers as they are, a missing one as NaN. Labels of text come as NumPy's.

    Args:
        estimator: With `fit(X, y)`; a pipeline or a search too. It stays as it is.
        table: Features, label and weights.
        features: Columns, in the order that the estimator sees.
        label: Column without missing values.
        weights: Column of row weights; they go to the last step of a pipeline.
        seed: For each `random_state` that is not set.
        cpus: For the estimator's own threads (OpenMP, BLAS).

    Returns:
        A fitted copy.

    Raises:
        DataError: A column is not there, a label is missing, or the estimator refuses the data.
        ResourceError: The cluster can never lend so many CPUs.
    """
    columns = Columns(tuple(features), label, weights).checked(table)
    return on_cluster("fit", _fit, seeded(estimator, seed), table, columns, cpus=cpus)


def on_cluster(
    what: str, function: Callable[..., Any], estimator: Any, *args: Any, cpus: int = 1
) -> Any:
    """What a function gives in a task that other tasks may be started from."""
    from raysys.train.estimators._joblib_backend import value_of

    name = f"{what} {type(estimator).__name__}"
    cluster.require(name, cpus=cpus)
    task = ray.remote(_with_threads).options(name=name, num_cpus=cpus)
    return value_of(task.remote(cpus, function, estimator, *args))


def _with_threads(cpus: int, function: Callable[..., Any], *args: Any) -> Any:
    with threadpool_limits(cpus):
        return function(*args)


def _fit(estimator: Any, table: Table, columns: Columns) -> Any:
    rows = Rows.of(table, columns)
    options = {}
    if rows.weights is not None:
        options[_weights_name(estimator)] = rows.weights
    with spread(estimator, rows):
        estimator.fit(rows.x, rows.y, **options)
    return estimator


@contextmanager
def spread(estimator: Any, rows: Rows) -> Iterator[None]:
    """A block whose joblib loops are tasks, and whose errors name the estimator."""
    from raysys.train.estimators._joblib_backend import RayTasks

    try:
        with parallel_config(backend=RayTasks(held=rows.held), n_jobs=-1):
            yield
    except (TypeError, ValueError) as error:
        raise DataError(f"{type(estimator).__name__} refuses the data: {error}") from error


def seeded(estimator: Any, seed: int) -> Any:
    """A copy that is not fitted, with a seed wherever there is none."""
    from sklearn.base import clone

    if not hasattr(estimator, "get_params"):
        return copy.deepcopy(estimator)
    made = clone(estimator)
    unset = {
        name: seed
        for name, value in made.get_params().items()
        if name.rpartition("__")[2] == "random_state" and value is None
    }
    return made.set_params(**unset)


def _weights_name(estimator: Any) -> str:
    """The argument of `fit` that takes row weights."""
    from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
    from sklearn.pipeline import Pipeline

    searches = GridSearchCV | RandomizedSearchCV
    inner = estimator.estimator if isinstance(estimator, searches) else estimator
    last = f"{inner.steps[-1][0]}__" if isinstance(inner, Pipeline) else ""
    return f"{last}sample_weight"
