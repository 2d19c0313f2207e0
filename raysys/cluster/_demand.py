"""Check of a job's demand against a cluster's dashboard before the job starts."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from raysys.cluster._connection import Resources
from raysys.errors import RaysysError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from raysys.cluster._dashboard import Dashboard


def declared_demand(job: Path) -> Resources | None:
    """The demand that a job's module declares: `DEMAND = {"cpus": 4, "gpus": 1}` at top level.

    The module is read, not run: the submitting machine may lack its packages.

    Raises:
        RaysysError: The declaration has another form, or the file is not Python.
    """
    try:
        module = ast.parse(job.read_bytes(), str(job))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise RaysysError(f"{job}{line}: {getattr(error, 'msg', error)}") from error
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "DEMAND" for target in targets):
            assert isinstance(node, ast.Assign)
            try:
                demand = ast.literal_eval(node.value)
                return Resources(cpus=demand.pop("cpus", 0), gpus=demand.pop("gpus", 0), **demand)
            except (AttributeError, TypeError, ValueError) as error:
                raise RaysysError(
                    f"{job}, line {node.lineno}: write DEMAND as numbers, such as "
                    '{"cpus": 4, "gpus": 1}'
                ) from error
    return None


def check_demand(dashboard: Dashboard, purpose: str, demand: Resources) -> str | None:
    """Compare a demand with a cluster's nodes and with its ability to grow.

    Returns:
        A remark, if the demand only fits once the cluster has grown. The dashboard does not report
        how far it may grow; `cluster.require` checks that inside.

    Raises:
        ResourceError: The demand can never fit.
    """
    nodes = dashboard.get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    status = dashboard.get("/api/cluster_status")["data"].get("clusterStatus")
    return judge(purpose, demand, nodes, status)


def judge(
    purpose: str,
    demand: Resources,
    nodes: Sequence[Mapping[str, Any]],
    status: Mapping[str, Any] | None,
) -> str | None:
    """The decision of `check_demand`, from the dashboard's nodes and cluster status."""
    alive = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
    have = Resources(
        cpus=sum(node.get("CPU", 0.0) for node in alive),
        gpus=sum(node.get("GPU", 0.0) for node in alive),
    )
    if demand.cpus <= have.cpus and demand.gpus <= have.gpus:
        return None
    wants = f"{purpose} needs {demand.cpus:g} CPUs and {demand.gpus:g} GPUs"
    has = f"the cluster has {have.cpus:g} and {have.gpus:g} now"
    if grows(status):
        return f"{wants}; {has}, and starts when it has grown"
    raise ResourceError(
        f"{wants}; {has}, and does not grow. Ask for less (--cpus, --gpus, the job's own flags), "
        "or take a larger cluster (a local one: `raysys down`, then `raysys up --cpus N`)"
    )


def grows(status: Mapping[str, Any] | None) -> bool:
    """Whether a cluster has an autoscaler.

    A head without one reports each node as a type of its own, `node_<id>`.
    """
    report = (status or {}).get("autoscalerReport") or {}
    types = report.get("nodeTypeMapping") or {}
    return any(kind != f"node_{node}" for node, kind in types.items())
