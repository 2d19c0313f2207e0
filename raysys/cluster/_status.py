"""What a cluster has and does now, read from its dashboard."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from raysys.cluster._dashboard import Dashboard

_LIMIT = "limit=10000"
_ALIVE = f"{_LIMIT}&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
_PATHS = {
    "nodes": f"/api/v0/nodes?detail=1&{_LIMIT}",
    "cluster": "/api/cluster_status",
    "applications": "/api/serve/applications/",
    "actors": f"/api/v0/actors?{_ALIVE}",
    "jobs": "/api/jobs/",
}
_GIB = 1 << 30
# A replica of an index is the actor index:<name>:<shard>.<replica>.
_INDEX = re.compile(r"index:(?P<name>.+):(?P<shard>\d+)\.\d+")


def status_lines(dashboard: Dashboard) -> list[str]:
    """Nodes, resources, what waits, applications, indexes and jobs, as lines for people.

    Raises:
        UnavailableError: The dashboard does not answer, or takes another token.
    """
    with ThreadPoolExecutor(len(_PATHS)) as threads:
        answers = dict(zip(_PATHS, threads.map(dashboard.get, _PATHS.values()), strict=True))
    cluster = answers["cluster"]["data"].get("clusterStatus") or {}
    load = cluster.get("loadMetricsReport") or {}
    nodes = answers["nodes"]["data"]["result"]["result"]
    return [
        *node_lines(nodes, load.get("usageByNode") or {}),
        *waiting_lines(load),
        *application_lines(answers["applications"].get("applications") or {}),
        *index_lines(answers["actors"]["data"]["result"]["result"]),
        *job_lines(answers["jobs"]),
    ]


def node_lines(
    nodes: Sequence[Mapping[str, Any]], usage: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[str]:
    """Living nodes, each with what is used of what it has, and how many are gone."""
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    total: Counter[str] = Counter()
    used: Counter[str] = Counter()
    lines = []
    for node in sorted(alive, key=lambda node: (not node["is_head_node"], node["node_ip"])):
        has = node["resources_total"]
        uses = {_kind(key): pair[0] for key, pair in usage.get(node["node_id"], {}).items()}
        total.update({kind: has.get(kind, 0) for kind in _SHOWN})
        used.update({kind: uses.get(kind, 0) for kind in _SHOWN})
        head = " (head)" if node["is_head_node"] else ""
        lines.append(f"  {node['node_ip']}{head}: {_amounts(uses, has)}")
    dead = len(nodes) - len(alive)
    gone = f", {dead} that are gone" if dead else ""
    return [f"nodes: {len(alive)}{gone}; used {_amounts(used, total)}", *lines]


def waiting_lines(load: Mapping[str, Any]) -> list[str]:
    """Demands of tasks, actors and placement groups that no node has room for."""
    waiting = [f"  {count} x {_shape(shape)}" for shape, count in load.get("resourceDemand") or []]
    for group, count in load.get("pgDemand") or []:
        bundles = ", ".join(f"{many} x {_shape(shape)}" for shape, many in group["bundles"])
        waiting.append(f"  {count} x placement group ({group['strategy']}) of {bundles}")
    return ["waiting for room:", *waiting] if waiting else ["waiting for room: nothing"]


def application_lines(applications: Mapping[str, Any]) -> list[str]:
    """Applications of Serve with the states of their replicas."""
    lines = []
    for name, application in sorted(applications.items()):
        parts = []
        for title, deployment in sorted((application.get("deployments") or {}).items()):
            states = Counter(str(one["state"]) for one in deployment.get("replicas") or [])
            wanted = deployment.get("target_num_replicas")
            said = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
            parts.append(f"{title} {said or 'no replica'} (wants {wanted})")
        lines.append(f"  {name}: {application.get('status')}; {'; '.join(parts)}")
    return ["applications:", *lines] if lines else ["applications: none"]


def index_lines(actors: Iterable[Mapping[str, Any]]) -> list[str]:
    """Vector indexes, by the actors that hold them."""
    shards: dict[str, Counter[str]] = {}
    for actor in actors:
        if found := _INDEX.fullmatch(actor.get("name") or ""):
            shards.setdefault(found["name"], Counter())[found["shard"]] += 1
    lines = [
        f"  {name}: {len(held)} shards, {sum(held.values())} replicas"
        for name, held in sorted(shards.items())
    ]
    return ["indexes:", *lines] if lines else ["indexes: none"]


def job_lines(jobs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Jobs that run or wait to, submitted ones and drivers that connected by themselves."""
    running = [job for job in jobs if job["status"] in ("PENDING", "RUNNING")]
    lines = [
        f"  {job['submission_id'] or 'driver ' + str(job['job_id'])}: {job['status']}, "
        f"{job['entrypoint']}"
        for job in running
    ]
    return ["jobs that run:", *lines] if lines else ["jobs that run: none"]


_SHOWN = ("CPU", "GPU", "memory", "object_store_memory")


def _kind(key: str) -> str:
    """The dashboard writes object_store_memory as objectStoreMemory, and leaves CPU as it is."""
    return "object_store_memory" if key == "objectStoreMemory" else key


def _amounts(used: Mapping[str, float], has: Mapping[str, float]) -> str:
    parts = [f"{used.get('CPU', 0):g}/{has.get('CPU', 0):g} CPUs"]
    if has.get("GPU"):
        parts.append(f"{used.get('GPU', 0):g}/{has['GPU']:g} GPUs")
    for kind, title in (("memory", "memory"), ("object_store_memory", "object store")):
        if has.get(kind):
            parts.append(f"{used.get(kind, 0) / _GIB:.1f}/{has[kind] / _GIB:.1f} GiB {title}")
    return ", ".join(parts)


def _shape(shape: Mapping[str, float]) -> str:
    return " ".join(f"{amount:g} {_kind(kind)}" for kind, amount in shape.items()) or "nothing"
