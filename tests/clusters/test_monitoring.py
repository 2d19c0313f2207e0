"""The alerts and dashboards of clusters/monitoring, with Prometheus scraping a run."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters" / "monitoring"
TIMEOUT_S, LOOK_BACK_S = 480.0, 900.0
SCRAPE = "1s"
# Shorter windows of panels and alerts, for a run of a minute.
SHORTER = [(r"for: \w+", "for: 1s"), (r"\[5m\]", "[20s]"), (r"offset \w+", "offset 8s")]


def tool(name: str) -> str:
    """Debian's binary, which `make test` puts under .venv."""
    file = ROOT / ".venv" / "debian" / "bin" / name
    if not file.exists():
        if shutil.which("apt-get") is None:
            pytest.skip(f"needs {name}, or apt-get to install it")
        pytest.fail(f"{name} is missing: run .ci/debian-tools, as `make test` does")
    return str(file)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Title and query of each panel of each dashboard."""
    return [
        (f"{file.stem}: {panel['title']}", target["expr"])
        for file in sorted(FOLDER.glob("dashboard-*.json"))
        for panel in json.loads(file.read_text())["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(
    "check",
    ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"],
)
def test_promtool_accepts_the_files_and_every_alert_fires(check: str) -> None:
    done = subprocess.run(
        [tool("promtool"), *check.split()], cwd=FOLDER, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_severity_a_summary_an_action_and_a_test() -> None:
    tests = (FOLDER / "alerts_test.yml").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "action"} == rule["annotations"].keys()
        name = re.escape(rule["alert"])
        assert re.search(rf'exp_samples: .*alertname="{name}"', tests), rule["alert"]


def test_the_dashboards_are_up_to_date() -> None:
    dashboards = runpy.run_path(str(FOLDER / "dashboards.py"))["dashboards"]()
    for file, text in dashboards:
        assert file.read_text() == text, f"run clusters/monitoring/dashboards.py for {file.name}"


class Watched(NamedTuple):
    """A completed run that Prometheus still scrapes."""

    prometheus: str
    process: "subprocess.Popen[str]"
    events: list[dict[str, Any]]

    def query(self, query: str) -> list[dict[str, Any]]:
        """Series of a range query over the last minutes."""
        now = time.time()
        parameters = urllib.parse.urlencode(
            {"query": query, "start": now - LOOK_BACK_S, "end": now, "step": 1}
        )
        url = f"{self.prometheus}/api/v1/query_range?{parameters}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]["result"]

    def fired(self, alert: str) -> list[dict[str, str]]:
        series = self.query(f'ALERTS{{alertname="{alert}", alertstate="firing"}}')
        return [item["metric"] for item in series]

    def send(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        self.wait(command)

    def wait(self, name: str) -> dict[str, Any]:
        return until(
            lambda: next((event for event in self.events if event["event"] == name), None), name
        )


def until(condition: Callable[[], Any], name: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{name}: not within {TIMEOUT_S:.0f} s"
        time.sleep(0.3)
    return value


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    prometheus = tool("prometheus")
    # A short path: Ray's sockets are below, and their paths are limited to 107 characters.
    folder = Path("/tmp") / f"w{time.time_ns() % 10**8}"
    folder.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.clusters.watched_run", str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=(folder / "err").open("w"),
    )  # fmt: skip
    events: list[dict[str, Any]] = []

    def read() -> None:
        assert run.stdout
        for line in run.stdout:
            if line.startswith('{"event"'):
                events.append(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    server = None
    try:
        until(lambda: events or run.poll() is not None, "the cluster")
        assert events, (folder / "err").read_text()[-3000:]
        config = (FOLDER / "prometheus.yml").read_text().replace("10s", SCRAPE)
        config = re.sub(r"files: \[.*\]", f"files: [{events[0]['targets']}]", config)
        (folder / "prometheus.yml").write_text(config)
        alerts = (FOLDER / "alerts.yml").read_text()
        for pattern, shorter in SHORTER:
            alerts = re.sub(pattern, shorter, alerts)
        (folder / "alerts.yml").write_text(alerts)
        server = subprocess.Popen(
            [prometheus, f"--config.file={folder}/prometheus.yml", "--log.level=warn",
             f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={events[0]['listen']}"],
            stderr=(folder / "prometheus.log").open("w"),
        )  # fmt: skip
        watched = Watched(f"http://{events[0]['listen']}", run, events)
        until(
            lambda: run.poll() is not None or any(event["event"] == "ran" for event in events),
            "the run",
        )
        assert run.poll() is None, (folder / "err").read_text()[-3000:]
        yield watched
        watched.send("stop")
        run.wait(60)
    finally:
        for process in (server, run):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_every_panel_of_every_dashboard_has_data(watched: Watched) -> None:
    missing = dict.fromkeys(queries())

    def all_have_data() -> bool:
        for title, query in [*missing]:
            if watched.query(query.replace("$__rate_interval", "20s")):
                del missing[title, query]
        return not missing

    try:
        until(all_have_data, "panels with data")
    except AssertionError:
        pytest.fail(f"without data: {[*missing]}")


@pytest.mark.parametrize(
    ("alert", "labels"),
    [
        ("StepFailed", {"job": "watched", "step": "fail"}),
        ("ApplicationErrors", {"application": "watched"}),
        ("Shedding", {"application": "watched"}),
    ],
)
def test_alerts_fire_on_the_events_of_the_run(
    watched: Watched, alert: str, labels: dict[str, str]
) -> None:
    (metric,) = until(lambda: watched.fired(alert), alert)
    assert labels.items() <= metric.items()


def test_alerts_fire_when_a_shard_and_a_node_are_lost(watched: Watched) -> None:
    assert watched.fired("IndexShardDown") == []
    watched.send("replica")
    until(lambda: watched.fired("IndexShardDown"), "IndexShardDown")
    watched.send("node")
    until(lambda: watched.fired("NodeDown") or watched.fired("NodeLost"), "a lost node")
