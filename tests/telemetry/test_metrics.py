"""Metrics of a process: the catalogue, names, and the no-op without Ray."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raysys.errors import RaysysError
from raysys.telemetry import Counter, Gauge, metrics

MONITORING = Path(__file__).parents[2] / "clusters" / "monitoring"


@pytest.mark.parametrize(
    ("kind", "name"), [(Gauge, "rows"), (Gauge, "raysys_Rows"), (Counter, "raysys_test_rows")]
)
def test_a_malformed_name_is_refused(kind: type[Gauge], name: str) -> None:
    with pytest.raises(RaysysError, match=f"malformed .*{name}"):
        kind(name, "Help")


def test_a_name_is_declared_once() -> None:
    with pytest.raises(RaysysError, match="declared twice"):
        Gauge(metrics.INDEX_ROWS.name, "Help")


def test_every_metric_of_the_catalogue_has_help_and_its_unit_in_its_name() -> None:
    assert len(metrics.CATALOGUE) == len({metric.name for metric in metrics.CATALOGUE})
    for metric in metrics.CATALOGUE:
        assert metric.help[0].isupper() or metric.help[0].isdigit(), metric.name
        if metric.unit == "s":
            assert metric.name.endswith("_seconds")


def test_the_reference_table_is_that_of_the_catalogue() -> None:
    text = (MONITORING / "METRICS.md").read_text()
    assert text == metrics.reference_table(), (
        "run python -m raysys.telemetry.metrics > clusters/monitoring/METRICS.md"
    )


def test_dashboards_and_alerts_ask_for_metrics_and_labels_of_the_catalogue() -> None:
    known = {metric.name: metric for metric in metrics.CATALOGUE}
    panels = yaml.safe_load((MONITORING / "dashboards.yml").read_text())
    queries = [
        query
        for titles in panels.values()
        for panel in titles.values()
        for query in panel["queries"].values()
    ]
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    queries += [rule["expr"] for group in groups for rule in group["rules"]]
    asked = set()
    for query in queries:
        for name, selector in re.findall(r"ray_(raysys_\w+)(\{[^}]*\})?", query):
            metric = known[name.removesuffix("_bucket")]
            assert name.endswith("_bucket") == (metric.kind == "histogram"), query
            labels = set(re.findall(r"(\w+)\s*[=!]~?", selector or ""))
            assert labels <= {*metric.labels, "WorkerId", "NodeAddress", "SessionName"}, query
            asked.add(metric.name)
    assert len(asked) > 20


def test_without_ray_nothing_happens_and_ray_is_not_loaded() -> None:
    code = """
import sys
from raysys.telemetry import metrics
metrics.STEPS.inc(2, {"job": "j", "step": "s", "state": "done"})
metrics.TRAIN_LOSS.set(1)
metrics.INDEX_QUERY_SECONDS.observe(0.1)
assert "ray" not in sys.modules
import ray
metrics.STEPS.inc(2, {"job": "j", "step": "s", "state": "done"})
assert not ray.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unpickled_metric_is_that_of_the_process() -> None:
    metric = metrics.INDEX_QUERY_SECONDS

    assert pickle.loads(pickle.dumps(metric)) is metric
