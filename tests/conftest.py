"""One Ray cluster for the whole test run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysys.storage import Storage


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local cluster of 5 logical CPUs, in this process's own session."""
    import ray

    os.environ["RAYSYS_STORAGE"] = str(tmp_path_factory.mktemp("storage"))
    ray.init(
        address="local",
        num_cpus=5,
        log_to_driver=False,
        logging_level="warning",
    )
    yield
    ray.shutdown()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)
