"""Requests of applications by status class, from the metrics of the head node."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from raysys.telemetry.metrics import SERVE_REPLICAS, SERVE_REQUESTS, SERVE_SHED

if TYPE_CHECKING:
    from collections.abc import Iterable

_TIMEOUT_S = 3.0
_SAMPLE = re.compile(r"^ray_(raysys_serve_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def read_metrics(targets: Iterable[str]) -> list[str]:
    """Texts of Prometheus endpoints, `HOST:PORT`, without those that do not answer."""
    targets = list(targets)
    with ThreadPoolExecutor(max(1, len(targets))) as threads:
        return [text for text in threads.map(_read, targets) if text]


def request_counts(texts: Iterable[str]) -> dict[str, Counter[str]] | None:
    """Responses so far by application and status class; None without metrics of the gateway.

    Requests that the gateway sheds reach no application, and count with its 503.
    """
    counts: dict[str, Counter[str]] = {}
    has_gateway = False
    for name, pairs, value in (match for text in texts for match in _SAMPLE.findall(text)):
        labels = dict(_LABEL.findall(pairs))
        code = labels.get("code", "5xx")
        has_gateway = has_gateway or name == SERVE_REPLICAS.name
        is_shed = name == SERVE_SHED.name and labels["by"] == "gateway"
        if is_shed or name == SERVE_REQUESTS.name:
            counts.setdefault(labels["application"], Counter())[code] += int(float(value))
    return counts if has_gateway else None


def _read(target: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=_TIMEOUT_S) as reply:
            return str(reply.read().decode(errors="replace"))
    except OSError:
        return ""
