"""Makes the Grafana dashboards of dashboards.yml: `python clusters/monitoring/dashboards.py`.

Import the JSON in Grafana, or provision the folder; the data source is chosen on the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_CHOICE = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def dashboards() -> Iterator[tuple[Path, str]]:
    """The file and text of each dashboard."""
    for name, panels in yaml.safe_load((FOLDER / "dashboards.yml").read_text()).items():
        text = json.dumps(_dashboard(name, panels), indent=1) + "\n"
        yield FOLDER / f"dashboard-{name}.json", text


def _dashboard(name: str, panels: Mapping[str, Any]) -> dict[str, Any]:
    """Grafana's form of a dashboard, two panels a row."""
    return {
        "uid": f"raysys-{name}",
        "title": f"raysys: {name}",
        "tags": ["raysys"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_CHOICE]},
        "panels": [_panel(number, *item) for number, item in enumerate(panels.items())],
    }


def _panel(number: int, title: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": title,
        "type": asked.get("kind", "timeseries"),
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": asked["unit"]}, "overrides": []},
        "targets": [
            {"refId": chr(65 + n), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for n, (legend, query) in enumerate(asked["queries"].items())
        ],
    }


if __name__ == "__main__":
    for file, text in dashboards():
        file.write_text(text)
