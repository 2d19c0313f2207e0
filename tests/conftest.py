"""One Ray cluster and one MLflow database for the whole test run."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hypothesis
import pytest

from raysys import cluster
from raysys.storage import Storage

# How long an example may take is left to benchmarks: this machine may be crowded.
hypothesis.settings.register_profile("raysys", deadline=None)
hypothesis.settings.load_profile("raysys")

# Fixtures that start a cluster; `-m "not cluster"` leaves out the tests that use one.
CLUSTERS = {"cluster", "environment", "ray_cluster", "target", "two_nodes", "watched"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if CLUSTERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")


@pytest.fixture(scope="session", autouse=True)
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Making its tables takes seconds; before the cluster, whose workers inherit the variable."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return uri


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[Path]:
    """Folder of Ray in place of /tmp: the heads of this machine's users are not met by tests."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need a short path
    os.environ["RAY_TMPDIR"] = str(folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray

    os.environ["RAYSYS_STORAGE"] = str(tmp_path_factory.mktemp("storage"))
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_metrics_report_interval_ms"] = "2000"  # noqa: SIM112 - tests wait for metrics
    with agents_port_in_use():
        cluster.connect("local", measure_traffic=True)
    yield
    ray.shutdown()


@contextmanager
def agents_port_in_use() -> Iterator[None]:
    """Ray's fixed port of dashboard agents in use, as by another cluster of the machine."""
    with socket.socket() as other:
        with suppress(OSError):  # in use already
            other.bind(("", 52365))
            other.listen()
        yield


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)
