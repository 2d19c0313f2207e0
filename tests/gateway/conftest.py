"""HAProxies and replicas that end with their test."""

from collections.abc import Iterator

import pytest

from tests.gateway.fronts import (
    Maker,
    Starter,
    running_fronts,
    running_replicas,
)


@pytest.fixture
def replica() -> Iterator[Maker]:
    with running_replicas() as make:
        yield make


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory, replica: Maker) -> Iterator[Starter]:
    with running_fronts(tmp_path_factory.mktemp("front"), replica) as starter:
        yield starter
