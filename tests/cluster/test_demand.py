from pathlib import Path
from typing import Any

import pytest

from raysys.cluster import Resources, declared_demand
from raysys.cluster._demand import compare_demand, has_autoscaler
from raysys.errors import RaysysError, ResourceError

NODES: list[dict[str, Any]] = [
    {"state": "ALIVE", "resources_total": {"CPU": 4.0}},
    {"state": "ALIVE", "resources_total": {"CPU": 2.0, "GPU": 1.0}},
    {"state": "DEAD", "resources_total": {"CPU": 64.0, "GPU": 8.0}},
]
STATIC = {"autoscalerReport": {"nodeTypeMapping": {"a1": "node_a1", "b2": "node_b2"}}}
GROWING = {"autoscalerReport": {"nodeTypeMapping": {"a1": "head"}}}


def test_only_living_nodes_are_counted() -> None:
    assert compare_demand("j", Resources(cpus=6, gpus=1), NODES, STATIC) is None
    with pytest.raises(ResourceError, match=r"j needs 7 CPUs and 0 GPUs; the cluster has 6 and 1"):
        compare_demand("j", Resources(cpus=7, gpus=0), NODES, STATIC)
    with pytest.raises(ResourceError, match=r"j needs 0 CPUs and 2 GPUs.*raysys up --cpus N"):
        compare_demand("j", Resources(cpus=0, gpus=2), NODES, None)


def test_a_demand_that_fits_after_autoscaling_gives_a_remark() -> None:
    remark = compare_demand("j", Resources(cpus=7, gpus=0), NODES, GROWING)
    assert remark == (
        "j needs 7 CPUs and 0 GPUs; the cluster has 6 and 1 now, and starts after autoscaling"
    )
    assert compare_demand("j", Resources(cpus=6, gpus=0), NODES, GROWING) is None


@pytest.mark.parametrize("status", [None, {}, {"autoscalerReport": None}, STATIC])
def test_a_head_without_an_autoscaler_is_recognised(status: dict[str, Any] | None) -> None:
    assert not has_autoscaler(status)
    assert has_autoscaler(GROWING)


@pytest.mark.parametrize(
    ("code", "demand"),
    [
        ("import nothing_like_it\nDEMAND = {'cpus': 4, 'gpus': 1}", Resources(4, 1)),
        ("DEMAND = {'gpus': 0.5}", Resources(0, 0.5)),
        ("print('DEMAND')", None),
        ("def f():\n    DEMAND = {'cpus': 4}", None),
    ],
)
def test_the_demand_is_read_without_importing_the_module(
    tmp_path: Path, code: str, demand: Resources | None
) -> None:
    job = tmp_path / "job.py"
    job.write_text(code)
    assert declared_demand(job) == demand


@pytest.mark.parametrize(
    "value", ["cpus()", "{'cpu': 4}", "4", "{'cpus': 4, 'memory': 1}", "[4, 1]"]
)
def test_an_invalid_demand_is_rejected_with_its_line(tmp_path: Path, value: str) -> None:
    job = tmp_path / "job.py"
    job.write_text(f"\nDEMAND = {value}")
    with pytest.raises(RaysysError, match=r"job\.py, line 2: write DEMAND as numbers"):
        declared_demand(job)


def test_invalid_python_is_rejected_with_its_line(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text("import this\nx = = 1\n")
    with pytest.raises(RaysysError, match=r"job\.py, line 2: invalid syntax"):
        declared_demand(job)
