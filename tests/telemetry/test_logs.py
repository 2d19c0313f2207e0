"""Logs as JSON: what a line says, and where it stands."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysys.telemetry import log_context, logs

PATIENCE_S = 30.0


@pytest.fixture
def source() -> Iterator[list[str]]:
    found: list[str] = []
    logs.add_source("request_ids", lambda: found)
    yield found
    logs._sources.pop("request_ids")


def line(message: str = "went", **extra: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": "raysys.test", "levelname": "INFO", "msg": message, **extra}
    )
    return json.loads(logs.JsonFormatter().format(record))


def test_a_line_has_time_level_logger_and_message() -> None:
    said = line("a %s", args=("word",))

    assert (said["level"], said["logger"], said["message"]) == ("INFO", "raysys.test", "a word")
    assert said["time"].endswith("+00:00")


def test_what_is_given_as_extra_stands_in_the_line_and_what_is_no_json_as_text() -> None:
    assert line(shard=3)["shard"] == 3
    assert line(path=Path("/a"))["path"] == "/a"


def test_an_error_comes_with_its_traceback_in_the_same_line() -> None:
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        said = line(exc_info=sys.exc_info())

    assert "test_logs.py" in said["error"]
    assert "such thing" in said["error"]


def test_ids_of_a_context_are_in_its_lines_only() -> None:
    with log_context(run="r1"), log_context(step="etl"):
        inside = line()

    assert (inside["run"], inside["step"]) == ("r1", "etl")
    assert not {"run", "step"} & line().keys()


def test_a_source_is_asked_for_each_line(source: list[str]) -> None:
    assert "request_ids" not in line()
    source.append("q1")
    assert line()["request_ids"] == ["q1"]


def found_line(folder: Path, pattern: str, message: str) -> dict[str, Any]:
    """The line with a message, once a file of the folder has it."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for file in folder.glob(pattern):
            for text in file.read_text(errors="replace").splitlines():
                if message in text:
                    return json.loads(text)
        time.sleep(0.1)
    raise AssertionError(f"no line with {message!r} in {pattern}")


def log_folder() -> Path:
    from ray._private.worker import _global_node

    node: Any = _global_node
    return Path(node.get_session_dir_path()) / "logs"


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_logs_where_the_dashboard_shows_it_with_its_ids() -> None:
    import ray

    def work() -> tuple[str, str]:
        with log_context(run="r7", step="etl"):
            logging.getLogger("raysys.test").info("from a worker %d", 7)
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_job_id()

    node, job = ray.get(ray.remote(work).options(name="etl step").remote())
    said = found_line(log_folder(), "worker-*.err", "from a worker 7")

    assert (said["run"], said["step"], said["task"]) == ("r7", "etl", "etl step")
    assert (said["node"], said["job"]) == (node, job)


@pytest.mark.usefixtures("ray_cluster")
def test_an_actors_lines_have_its_name() -> None:
    import ray

    class Speaker:
        def say(self) -> None:
            logging.getLogger("raysys.test").warning("from an actor")

    speaker = ray.remote(Speaker).options(name="speaker:1").remote()
    ray.get(speaker.say.remote())

    assert found_line(log_folder(), "worker-*.err", "from an actor")["actor"] == "speaker:1"


@pytest.mark.usefixtures("ray_cluster")
def test_a_drivers_lines_are_in_a_file_and_not_on_its_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger("raysys.test").info("from the driver")

    said = found_line(log_folder(), f"raysys-driver-*-{os.getpid()}.log", "from the driver")
    assert said["job"]
    assert "from the driver" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("ray_cluster")
def test_starting_twice_writes_each_line_once() -> None:
    logs.set_up()
    logger = logging.getLogger("raysys")

    assert sum(isinstance(one.formatter, logs.JsonFormatter) for one in logger.handlers) == 1
