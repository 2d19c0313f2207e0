"""Fitting of scikit-learn estimators on the cluster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from joblib import parallel_config
from threadpoolctl import threadpool_limits

from raysys import cluster
from raysys.arguments import checked
from raysys.errors import DataError
from raysys.imports import lazy_import
from raysys.train.estimators._table_frame import FrameColumns, FrameRows

if TYPE_CHECKING:
    from raysys.data import Table

model_selection = lazy_import("sklearn.model_selection")
pipeline = lazy_import("sklearn.pipeline")
sklearn_base = lazy_import("sklearn.base")


@checked
def fit_estimator(
    estimator: Any,
    table: Table,
    *,
    features: Sequence[str],
    label: str,
    weight: str | None = None,
    seed: int = 0,
    cpus: int = 1,
) -> Any:
    """Fit a scikit-learn estimator, or one of its interface, in a task.

    Loops over `n_jobs` (a search's candidates and folds, a forest's trees, the members of a
    BaggingClassifier) become tasks: `n_jobs` at a time, or on the whole cluster if it is not set.
    The rows are in the object store once, and mapped by all tasks.

    The estimator receives a pandas frame with the features' names; text columns are categorical,
    missing numbers are NaN. Text labels are NumPy strings.

    Args:
        estimator: Estimator, pipeline or search with `fit(X, y)`; it is not changed.
        table: Features, label and weight.
        features: Feature columns, in the order of the matrix.
        label: Column without missing values.
        weight: Column of row weights; the last step of a pipeline receives them.
        seed: Seed of every `random_state` that is not set.
        cpus: CPUs of the task, for the estimator's own threads (OpenMP, BLAS).

    Returns:
        A fitted copy.

    Raises:
        DataError: A column or a label is missing, or the estimator refuses the data.
        ResourceError: The cluster is too small for so many CPUs.
    """
    columns = FrameColumns(tuple(features), label, weight).checked(table)
    return on_cluster("fit", _fit, seeded(estimator, seed), table, columns, cpus=cpus)


def on_cluster(
    action: str, function: Callable[..., Any], estimator: Any, *args: Any, cpus: int = 1
) -> Any:
    """Result of a function in a task, which may start other tasks."""
    from raysys.train.estimators._joblib_backend import value_of

    name = f"{action} {type(estimator).__name__}"
    cluster.require(name, cpus=cpus)
    task = ray.remote(_with_threads).options(name=name, num_cpus=cpus)
    return value_of(task.remote(cpus, function, estimator, *args))


def _with_threads(cpus: int, function: Callable[..., Any], *args: Any) -> Any:
    with threadpool_limits(cpus):
        return function(*args)


def _fit(estimator: Any, table: Table, columns: FrameColumns) -> Any:
    rows = FrameRows.of(table, columns)
    options = {} if rows.weight is None else {_weight_argument(estimator): rows.weight}
    with ray_joblib(estimator, rows):
        estimator.fit(rows.x, rows.y, **options)
    return estimator


@contextmanager
def ray_joblib(estimator: Any, rows: FrameRows) -> Iterator[None]:
    """A block that runs joblib loops as tasks, and names the estimator in errors."""
    from raysys.train.estimators._joblib_backend import RayTasks

    try:
        with parallel_config(backend=RayTasks(stored=rows.stored), n_jobs=-1):
            yield
    except (TypeError, ValueError) as error:
        raise DataError(f"{type(estimator).__name__} refuses the data: {error}") from error


def seeded(estimator: Any, seed: int) -> Any:
    """An unfitted copy with every missing `random_state` set."""
    if not hasattr(estimator, "get_params"):
        return copy.deepcopy(estimator)
    copied = sklearn_base.clone(estimator)
    unset = {
        name: seed
        for name, value in copied.get_params().items()
        if name.rpartition("__")[2] == "random_state" and value is None
    }
    return copied.set_params(**unset)


def _weight_argument(estimator: Any) -> str:
    """Name of the argument of `fit` for row weights."""
    searches = model_selection.GridSearchCV, model_selection.RandomizedSearchCV
    inner = estimator.estimator if isinstance(estimator, searches) else estimator
    prefix = f"{inner.steps[-1][0]}__" if isinstance(inner, pipeline.Pipeline) else ""
    return f"{prefix}sample_weight"
