"""Status of a cluster, read from its dashboard."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raysys.cluster._request_counts import read_metrics, request_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from raysys.cluster._dashboard import Dashboard

_LIMIT = "limit=10000"
_ALIVE = f"{_LIMIT}&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
_PATHS = (
    f"/api/v0/nodes?detail=1&{_LIMIT}", "/api/cluster_status", "/api/serve/applications/",
    f"/api/v0/actors?{_ALIVE}", "/api/jobs/", "/api/prometheus/sd",
)  # fmt: skip
_SHOWN = ("CPU", "GPU", "memory", "object_store_memory")
_GIB = 1 << 30
# A replica of an index is the actor index:<name>:<shard>.<replica>.
_INDEX = re.compile(r"index:(?P<name>.+):(?P<shard>\d+)\.\d+")
# Serve's application of a version.
_VERSION = re.compile(r"(?P<name>.+)-v\d+")


def status_lines(dashboard: Dashboard) -> list[str]:
    """Nodes, resources, pending demands, applications, indexes and jobs, as lines of text.

    Raises:
        UnavailableError: The dashboard does not answer, or rejects the token.
    """
    with ThreadPoolExecutor(len(_PATHS)) as threads:
        nodes, cluster, serve, actors, jobs, metrics = threads.map(dashboard.get, _PATHS)
    load = (cluster["data"].get("clusterStatus") or {}).get("loadMetricsReport") or {}
    nodes = nodes["data"]["result"]["result"]
    applications = serve.get("applications") or {}
    # The gateway runs on the head.
    heads = {node["node_ip"] for node in nodes if node["is_head_node"]}
    targets = {target for group in metrics for target in group["targets"]}
    texts = read_metrics(
        target for target in targets if applications and target.rpartition(":")[0] in heads
    )
    return [
        *node_lines(nodes, load.get("usageByNode") or {}),
        *pending_lines(load),
        *application_lines(applications, request_counts(texts)),
        *index_lines(actors["data"]["result"]["result"]),
        *job_lines(jobs),
    ]


def node_lines(
    nodes: Sequence[Mapping[str, Any]], usage: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[str]:
    """Living nodes with used and total resources, and the number of dead nodes."""
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    total: Counter[str] = Counter()
    used: Counter[str] = Counter()
    lines = []
    for node in sorted(alive, key=lambda node: (not node["is_head_node"], node["node_ip"])):
        available = node["resources_total"]
        in_use = {_kind(key): pair[0] for key, pair in usage.get(node["node_id"], {}).items()}
        total.update({kind: available.get(kind, 0) for kind in _SHOWN})
        used.update({kind: in_use.get(kind, 0) for kind in _SHOWN})
        head = " (head)" if node["is_head_node"] else ""
        lines.append(f"  {node['node_ip']}{head}: {_amounts(in_use, available)}")
    dead = len(nodes) - len(alive)
    suffix = f", {dead} dead" if dead else ""
    return [f"nodes: {len(alive)}{suffix}; used {_amounts(used, total)}", *lines]


def pending_lines(load: Mapping[str, Any]) -> list[str]:
    """Pending demands of tasks, actors and placement groups."""
    pending = [f"  {count} x {_shape(shape)}" for shape, count in load.get("resourceDemand") or []]
    for group, count in load.get("pgDemand") or []:
        bundles = ", ".join(f"{number} x {_shape(shape)}" for shape, number in group["bundles"])
        pending.append(f"  {count} x placement group ({group['strategy']}) of {bundles}")
    return _section("pending demands", pending)


def application_lines(
    applications: Mapping[str, Any], requests: Mapping[str, Counter[str]] | None
) -> list[str]:
    """Serve applications with their replicas, stored models, and requests so far.

    Args:
        applications: Serve's description of each version, by `<name>-v<version>`.
        requests: Responses of all versions by name and status class; None if unknown.
    """
    lines = []
    for title, application in sorted(applications.items()):
        parts, models = [], list[str]()
        for name, deployment in sorted((application.get("deployments") or {}).items()):
            states = Counter(str(replica["state"]) for replica in deployment.get("replicas") or [])
            target = deployment.get("target_num_replicas")
            summary = ", ".join(
                f"{count} {state.lower()}" for state, count in sorted(states.items())
            )
            parts.append(f"{name} {summary or 'no replicas'} (target {target})")
            options = (deployment.get("deployment_config") or {}).get("user_config") or {}
            models += options.get("models", [])
        if models:
            parts.append(f"models {', '.join(models)}")
        if requests is not None and (version := _VERSION.fullmatch(title)):
            parts.append(_answered(requests.get(version["name"], Counter())))
        since = datetime.fromtimestamp(application["last_deployed_time_s"])
        head = f"  {title}: {application.get('status')} since {since:%Y-%m-%d %H:%M}"
        lines.append("; ".join([head, *parts]))
    if lines:
        reason = "unknown, this machine reads no metrics of the gateway"
        age = "up to 15 s old"
        lines.append(f"  numbers of requests: {reason if requests is None else age}")
    return _section("applications", lines)


def _answered(counts: Counter[str]) -> str:
    """Number of requests, and of failed ones."""
    failed = {code: counts[code] for code in ("4xx", "5xx") if counts[code]}
    if not failed:
        return f"{counts.total()} requests, none failed"
    codes = ", ".join(f"{count} {code}" for code, count in failed.items())
    return f"{sum(failed.values())} of {counts.total()} requests failed ({codes})"


def index_lines(actors: Iterable[Mapping[str, Any]]) -> list[str]:
    """Vector indexes, by the names of their actors."""
    shards: dict[str, Counter[str]] = {}
    for actor in actors:
        if match := _INDEX.fullmatch(actor.get("name") or ""):
            shards.setdefault(match["name"], Counter())[match["shard"]] += 1
    lines = [
        f"  {name}: {len(replicas)} shards, {sum(replicas.values())} replicas"
        for name, replicas in sorted(shards.items())
    ]
    return _section("indexes", lines)


def job_lines(jobs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Running and pending jobs: submitted jobs, and drivers that are connected directly."""
    active = [job for job in jobs if job["status"] in ("PENDING", "RUNNING")]
    lines = [
        f"  {job['submission_id'] or 'driver ' + str(job['job_id'])}: {job['status']}, "
        f"{job['entrypoint']}"
        for job in active
    ]
    return _section("active jobs", lines)


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *lines] if lines else [f"{title}: none"]


def _kind(key: str) -> str:
    """Resource name of a dashboard key: objectStoreMemory is the only one in camel case."""
    return "object_store_memory" if key == "objectStoreMemory" else key


def _amounts(used: Mapping[str, float], total: Mapping[str, float]) -> str:
    parts = [f"{used.get('CPU', 0):g}/{total.get('CPU', 0):g} logical CPUs"]
    if total.get("GPU"):
        parts.append(f"{used.get('GPU', 0):g}/{total['GPU']:g} GPUs")
    for kind, title in (("memory", "memory"), ("object_store_memory", "object store")):
        if total.get(kind):
            parts.append(f"{used.get(kind, 0) / _GIB:.1f}/{total[kind] / _GIB:.1f} GiB {title}")
    return ", ".join(parts)


def _shape(shape: Mapping[str, float]) -> str:
    return " ".join(f"{amount:g} {_kind(kind)}" for kind, amount in shape.items()) or "nothing"
