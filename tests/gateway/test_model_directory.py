"""Totals of models' counts over replicas that come and go, and the repository's index."""

import asyncio
import http.client
import json
from typing import Any

import pytest

from raysys.gateway._holding_proxy import HoldingProxy
from raysys.gateway._model_directory import ModelDirectory
from raysys.serve._statistics import ModelStatistics
from tests.serve.asynchronous import in_loop


def counts(*batches: tuple[int, float, list[float]]) -> dict[str, Any]:
    statistics = ModelStatistics()
    for batch in batches:
        statistics.batch(*batch)
        for _ in batch[2]:
            statistics.counting(lambda *_: None)(200, "", b"")
    return statistics.counts()


@pytest.fixture
def current() -> dict[str, int]:
    return {"a": 2, "shelf": 1}


@pytest.fixture
def models(current: dict[str, int]) -> ModelDirectory:
    directory = ModelDirectory(lambda: current)
    directory.update("a", 1, "old", {"a": counts((9, 1.0, [0.0]))})
    directory.update("a", 2, "one", {"a": counts((3, 0.5, [0.25, 0.0]))})
    directory.update("a", 2, "two", {"a": counts((3, 0.5, [0.0]), (1, 0.1, [0.0]))})
    directory.update("shelf", 1, "one", {"shelf/put": counts(), "shelf/find": counts()})
    return directory


def test_the_counts_of_a_models_replicas_are_added_up(models: ModelDirectory) -> None:
    (described,) = models.statistics("a", "a")["model_stats"]
    assert (described["name"], described["version"]) == ("a", "2")
    assert (described["inference_count"], described["execution_count"]) == (7, 3)
    assert described["last_inference"] > 1_600_000_000_000
    stages = described["inference_stats"]
    assert stages["success"]["count"] == 4
    assert stages["success"]["ns"] > 0
    assert stages["fail"] == {"count": 0, "ns": 0}
    assert stages["queue"] == {"count": 4, "ns": 250_000_000}
    assert stages["compute_infer"] == {"count": 4, "ns": 1_600_000_000}
    sizes = {
        one["batch_size"]: (one["compute_infer"]["count"], one["compute_infer"]["ns"])
        for one in described["batch_stats"]
    }
    assert sizes == {1: (1, 100_000_000), 3: (2, 1_000_000_000)}


def test_counts_outlive_their_replica_and_end_with_their_version(
    models: ModelDirectory, current: dict[str, int]
) -> None:
    for replica in ("one", "two"):
        models.leave("a", 2, replica)
    assert models.statistics("a", "a")["model_stats"][0]["inference_count"] == 7
    models.update("a", 2, "three", {"a": counts((1, 0.1, [0.0]))})
    assert models.statistics("a", "a")["model_stats"][0]["inference_count"] == 8
    current["a"] = 3
    models.leave("a", 2, "three")
    with pytest.raises(LookupError):
        models.statistics("a", "a")
    assert not models._left


def test_statistics_are_of_all_models_or_of_one(models: ModelDirectory) -> None:
    def names(*which: str) -> list[str]:
        return [one["name"] for one in models.statistics(*which)["model_stats"]]

    assert names() == ["a", "shelf/put", "shelf/find"]
    assert names("shelf", "shelf/find", "1") == ["shelf/find"]
    for unknown in (("a", "b"), ("a", "a", "1"), ("a", "shelf/put"), ("shelf", "shelf")):
        with pytest.raises(LookupError):
            models.statistics(*unknown)


@in_loop
async def test_a_path_reaches_the_statistics_of_its_application_only(
    models: ModelDirectory,
) -> None:
    holding = HoldingProxy(lambda _: [], lambda _: 0.0, lambda: True)
    port = await holding.start(models.routes())

    def ask(path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", path, headers={"x-raysys-app": "shelf", "x-request-id": "mine"})
        reply = connection.getresponse()
        content = reply.status, json.load(reply)
        connection.close()
        return content

    for path in ("/v2/models/shelf/put/stats", "/v2/models/shelf%2Fput/versions/1/stats"):
        status, content = await asyncio.to_thread(ask, path)
        assert (status, content["model_stats"][0]["name"]) == (200, "shelf/put")
    for path in ("shelf", "shelf/../a", "shelf/..%2Fa", "shelf/%2E%2E/a", "shelf/x/../../a", "a"):
        status, content = await asyncio.to_thread(ask, f"/v2/models/{path}/stats")
        assert (status, content["request_id"]) == (404, "mine"), path
    await holding._session.close()
    await holding._runner.cleanup()


def test_the_index_has_the_state_of_each_model(models: ModelDirectory) -> None:
    models.leave("a", 2, "one")
    models.leave("a", 2, "two")
    states = {one["name"]: (one["version"], one["state"]) for one in models.index(False)}
    assert states == {
        "a": ("2", "UNAVAILABLE"),
        "shelf/put": ("1", "READY"),
        "shelf/find": ("1", "READY"),
    }
    assert [one["name"] for one in models.index(True)] == ["shelf/put", "shelf/find"]
