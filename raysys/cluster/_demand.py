"""Check of a job's demand against a cluster's dashboard before the job starts."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from raysys.cluster._resources import Resources
from raysys.errors import RaysysError, ResourceError

if TYPE_CHECKING:
    from pathlib import Path

    from raysys.cluster._dashboard import Dashboard


def declared_demand(job: Path) -> Resources | None:
    """The demand declared in a job's module: `DEMAND = {"cpus": 4, "gpus": 1}` at top level.

    The module is parsed, not imported: the submitting machine may lack its packages.

    Raises:
        RaysysError: The declaration is invalid, or the file is not valid Python.
    """
    try:
        module = ast.parse(job.read_bytes(), str(job))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise RaysysError(f"{job}{line}: {getattr(error, 'msg', error)}") from error
    for node in module.body:
        match node:
            case ast.Assign(targets=[*_, ast.Name(id="DEMAND")], value=value):
                try:
                    return Resources(**{"cpus": 0, "gpus": 0, **ast.literal_eval(value)})
                except (TypeError, ValueError) as error:
                    raise RaysysError(
                        f"{job}, line {node.lineno}: write DEMAND as numbers, such as "
                        '{"cpus": 4, "gpus": 1}'
                    ) from error
    return None


def check_demand(dashboard: Dashboard, purpose: str, demand: Resources) -> str | None:
    """Check a demand against a cluster's nodes and its autoscaler.

    Returns:
        A remark if the demand fits only after autoscaling. The dashboard does not report the
        autoscaler's limits; `cluster.require` checks those inside the job.

    Raises:
        ResourceError: The demand can never fit.
    """
    nodes = dashboard.get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    status = dashboard.get("/api/cluster_status")["data"].get("clusterStatus") or {}
    alive = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
    current = Resources(
        cpus=sum(node.get("CPU", 0.0) for node in alive),
        gpus=sum(node.get("GPU", 0.0) for node in alive),
    )
    if current.covers(demand.cpus, demand.gpus):
        return None
    needs = f"{purpose} needs {demand.cpus:g} CPUs and {demand.gpus:g} GPUs"
    has = f"the cluster has {current.cpus:g} and {current.gpus:g} now"
    types = (status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
    # A head without an autoscaler reports each node as a type of its own, `node_<id>`.
    if any(kind != f"node_{node}" for node, kind in types.items()):
        return f"{needs}; {has}, and starts after autoscaling"
    raise ResourceError(
        f"{needs}; {has}, and has no autoscaler. Reduce the demand (--cpus, --gpus, the job's own "
        "flags), or use a larger cluster (a local one: `raysys down`, then `raysys up --cpus N`)"
    )
