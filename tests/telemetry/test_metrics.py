"""Metrics of a process: their names, and what happens without Ray."""

import pickle
import subprocess
import sys

import pytest

from raysys.errors import RaysysError
from raysys.telemetry import counter, gauge, histogram


def test_a_metric_is_made_once_in_a_process() -> None:
    made = counter("raysys_test_once_total", "Once", ("job",))

    assert counter("raysys_test_once_total", "Once", ["job"]) is made


@pytest.mark.parametrize(
    "make",
    [lambda: gauge("rows", "No prefix"), lambda: gauge("raysys_Rows", "Capitals"),
     lambda: counter("raysys_test_rows", "A counter that does not say so")],
)  # fmt: skip
def test_a_name_that_is_none_is_told(make: object) -> None:
    with pytest.raises(RaysysError, match="raysys_"):
        make()  # type: ignore[operator]


def test_a_name_has_one_kind_and_one_set_of_labels() -> None:
    gauge("raysys_test_size_rows", "Size", ("job",))

    with pytest.raises(RaysysError, match="give one of them another name"):
        gauge("raysys_test_size_rows", "Size", ("job", "step"))
    with pytest.raises(RaysysError, match="Histogram"):
        histogram("raysys_test_size_rows", "Size", ("job",))


def test_without_ray_nothing_happens_and_ray_is_not_loaded() -> None:
    code = """
import sys
from raysys.telemetry import counter, gauge, histogram
counter("raysys_test_a_total", "A", ("job",)).inc(2, {"job": "j"})
gauge("raysys_test_b", "B").set(1)
histogram("raysys_test_c_seconds", "C").observe(0.1)
assert "ray" not in sys.modules
import ray
counter("raysys_test_a_total", "A", ("job",)).inc(2, {"job": "j"})
assert not ray.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_metric_that_a_task_closes_over_is_its_processs_own() -> None:
    made = histogram("raysys_test_closed_seconds", "C", ("job",), boundaries=(1.0, 2.0))

    assert pickle.loads(pickle.dumps(made)) is made
