from pathlib import Path
from typing import Any

import pytest

from raysys.cluster import Dashboard, Resources, check_demand, declared_demand
from raysys.errors import RaysysError, ResourceError

NODES: list[dict[str, Any]] = [
    {"state": "ALIVE", "resources_total": {"CPU": 4.0}},
    {"state": "ALIVE", "resources_total": {"CPU": 2.0, "GPU": 1.0}},
    {"state": "DEAD", "resources_total": {"CPU": 64.0, "GPU": 8.0}},
]
STATIC = {"autoscalerReport": {"nodeTypeMapping": {"a1": "node_a1", "b2": "node_b2"}}}
GROWING = {"autoscalerReport": {"nodeTypeMapping": {"a1": "head"}}}


class _Dashboard(Dashboard):
    """The responses of a cluster with a status."""

    def __init__(self, status: dict[str, Any] | None) -> None:
        super().__init__("http://127.0.0.1:8265")
        self._status = status

    def get(self, path: str, *, timeout_s: float = 20.0) -> Any:
        if path.startswith("/api/v0/nodes?"):
            return {"data": {"result": {"result": NODES}}}
        assert path == "/api/cluster_status"
        return {"data": {"clusterStatus": self._status}}


def test_only_living_nodes_are_counted() -> None:
    static = _Dashboard(STATIC)
    assert check_demand(static, "j", Resources(cpus=6, gpus=1)) is None
    with pytest.raises(ResourceError, match=r"j needs 7 CPUs and 0 GPUs; the cluster has 6 and 1"):
        check_demand(static, "j", Resources(cpus=7, gpus=0))
    with pytest.raises(ResourceError, match=r"j needs 0 CPUs and 2 GPUs.*raysys up --cpus N"):
        check_demand(static, "j", Resources(cpus=0, gpus=2))


def test_a_demand_that_fits_after_autoscaling_gives_a_remark() -> None:
    growing = _Dashboard(GROWING)
    remark = check_demand(growing, "j", Resources(cpus=7, gpus=0))
    assert remark == (
        "j needs 7 CPUs and 0 GPUs; the cluster has 6 and 1 now, and starts after autoscaling"
    )
    assert check_demand(growing, "j", Resources(cpus=6, gpus=0)) is None


@pytest.mark.parametrize("status", [None, {}, {"autoscalerReport": None}, STATIC])
def test_a_head_without_an_autoscaler_is_recognised(status: dict[str, Any] | None) -> None:
    with pytest.raises(ResourceError, match="has no autoscaler"):
        check_demand(_Dashboard(status), "j", Resources(cpus=7, gpus=0))


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
