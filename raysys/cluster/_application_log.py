"""Log of a served application: the lines of its replicas, living and dead, in order of time."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError, UnavailableError, unknown_names

if TYPE_CHECKING:
    from raysys.cluster._dashboard import Dashboard

WORKER_NAME = "SERVE_WORKER"
# Serve's replica of the deployment of a version, or a worker of it.
_REPLICA = re.compile(
    rf"(SERVE_REPLICA|{WORKER_NAME})::(?P<app>.+)-v(?P<version>\d+)#(?P<deployment>[^#]+)#.*"
)
_MAX_LINES = 20_000  # of a replica, the newest


def application_log(dashboard: Dashboard, app: str, *, request: str | None = None) -> list[str]:
    """Lines of the replicas of an application, each with its version.

    Args:
        dashboard: The cluster's dashboard.
        app: Name of the application.
        request: Id of a request, for its lines alone.

    Raises:
        RaysysError: No replica of the application has run on this cluster.
        UnavailableError: The dashboard does not answer, or reads no replica's log.
    """
    actors = dashboard.get("/api/v0/actors?detail=1&limit=10000")["data"]["result"]["result"]
    replicas = [
        (match, actor["actor_id"])
        for actor in actors
        if (match := _REPLICA.fullmatch(actor.get("name") or ""))
    ]
    mine = [(match["version"], actor) for match, actor in replicas if match["app"] == app]
    if not mine:
        apps = sorted({match["app"] for match, _ in replicas})
        raise RaysysError(
            f"no replicas of the application {unknown_names([app], apps)}: "
            + (f"give one of {', '.join(apps)}" if apps else "none has run on this cluster")
        )
    records, unread = [], list[UnavailableError]()
    for version, actor in mine:
        try:
            lines = _records(dashboard, actor)
        except UnavailableError as error:  # its node has left, or it is starting
            unread.append(error)
            continue
        records += [
            {**record, "version": version}
            for record in lines
            if request is None or _concerns(record, request)
        ]
    if len(unread) == len(mine):
        raise unread[-1]
    return [_line(record) for record in sorted(records, key=lambda record: record["time"])]


def _records(dashboard: Dashboard, actor: str) -> list[dict[str, Any]]:
    """JSON lines of raysys in an actor's log."""
    text = dashboard.text(f"/api/v0/logs/file?actor_id={actor}&suffix=err&lines={_MAX_LINES}")
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # of another library
            continue
        if isinstance(record, dict) and "time" in record:
            records.append(record)
    return records


def _concerns(record: dict[str, Any], request: str) -> bool:
    return record.get("request_id") == request or request in record.get("request_ids", ())


def _line(record: dict[str, Any]) -> str:
    head = f"{record['time']} v{record['version']} {record.get('level')} {record.get('message')}"
    return f"{head}\n{record['error']}" if "error" in record else head
