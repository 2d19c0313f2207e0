"""clusters/monitoring against a real Prometheus that scrapes a real run."""

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
PATIENCE_S, LOOK_BACK_S = 240.0, 600.0
SCRAPE = "1s"
# What a panel's `rate` and an alert's look back become in a run of a minute.
SHORTER = [(r"for: \w+", "for: 1s"), (r"\[5m\]", "[20s]"), (r"offset \w+", "offset 8s")]


def tool(name: str) -> str:
    """Debian's binary, which `make test` puts under .venv."""
    file = ROOT / ".venv" / "debian" / "bin" / name
    if not file.exists():
        if shutil.which("apt-get") is None:
            pytest.skip(f"no {name} here, and no apt-get to get it with")
        pytest.fail(f"{name} is not there: run .ci/debian-tools, as `make test` does")
    return str(file)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Dashboard and title, and query, of each panel, as Grafana has them."""
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
def test_promtool_takes_the_files_and_shows_every_alert_fire(check: str) -> None:
    done = subprocess.run(
        [tool("promtool"), *check.split()], cwd=FOLDER, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_how_urgent_it_is_what_it_is_and_what_to_do_and_is_tested() -> None:
    shown = (FOLDER / "alerts_test.yml").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "action"} == rule["annotations"].keys()
        name = re.escape(rule["alert"])
        assert re.search(rf'exp_samples: .*alertname="{name}"', shown), rule["alert"]


def test_the_dashboards_are_those_of_their_source() -> None:
    made = runpy.run_path(str(FOLDER / "dashboards.py"))["dashboards"]()
    for file, text in made:
        assert file.read_text() == text, f"run clusters/monitoring/dashboards.py for {file.name}"


class Watched(NamedTuple):
    """A run that is over and still watched."""

    prometheus: str
    process: "subprocess.Popen[str]"
    said: list[dict[str, Any]]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query gave at any time of the last minutes, as a panel asks."""
        now = time.time()
        asked = urllib.parse.urlencode(
            {"query": query, "start": now - LOOK_BACK_S, "end": now, "step": 1}
        )
        url = f"{self.prometheus}/api/v1/query_range?{asked}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]["result"]

    def fired(self, alert: str) -> list[dict[str, str]]:
        found = self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing"}}')
        return [one["metric"] for one in found]

    def tell(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        self.wait(command)

    def wait(self, what: str) -> dict[str, Any]:
        return until(lambda: next((one for one in self.said if one["said"] == what), None), what)


def until(look: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {PATIENCE_S:.0f} s"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    prometheus = tool("prometheus")
    # Sockets of Ray stand below: their paths may have 107 characters.
    folder = Path("/tmp") / f"w{time.time_ns() % 10**8}"
    folder.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.clusters.watched_run", str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=(folder / "err").open("w"),
    )  # fmt: skip
    said: list[dict[str, Any]] = []

    def read() -> None:
        assert run.stdout
        for line in run.stdout:
            if line.startswith('{"said"'):
                said.append(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    server = None
    try:
        until(lambda: said or run.poll() is not None, "the cluster")
        assert said, (folder / "err").read_text()[-3000:]
        config = (FOLDER / "prometheus.yml").read_text().replace("10s", SCRAPE)
        config = re.sub(r"files: \[.*\]", f"files: [{said[0]['targets']}]", config)
        (folder / "prometheus.yml").write_text(config)
        alerts = (FOLDER / "alerts.yml").read_text()
        for pattern, shorter in SHORTER:
            alerts = re.sub(pattern, shorter, alerts)
        (folder / "alerts.yml").write_text(alerts)
        server = subprocess.Popen(
            [prometheus, f"--config.file={folder}/prometheus.yml", "--log.level=warn",
             f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={said[0]['listen']}"],
            stderr=(folder / "prometheus.log").open("w"),
        )  # fmt: skip
        seen = Watched(f"http://{said[0]['listen']}", run, said)
        until(lambda: run.poll() is not None or any(s["said"] == "ran" for s in said), "the run")
        assert run.poll() is None, (folder / "err").read_text()[-3000:]
        yield seen
        seen.tell("stop")
        run.wait(60)
    finally:
        for process in (server, run):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_every_panel_of_every_dashboard_has_data(watched: Watched) -> None:
    left = dict.fromkeys(queries())

    def none_left() -> bool:
        for title, query in [*left]:
            if watched.ask(query.replace("$__rate_interval", "20s")):
                del left[title, query]
        return not left

    try:
        until(none_left, "panels with data")
    except AssertionError:
        pytest.fail(f"without data: {[*left]}")


@pytest.mark.parametrize(
    ("alert", "labels"),
    [
        ("StepFailed", {"job": "watched", "step": "fail"}),
        ("ApplicationErrors", {"application": "watched"}),
        ("Shedding", {"application": "watched"}),
    ],
)
def test_alerts_fire_on_what_the_run_does(
    watched: Watched, alert: str, labels: dict[str, str]
) -> None:
    (found,) = until(lambda: watched.fired(alert), alert)
    assert labels.items() <= found.items()


def test_alerts_fire_when_a_shard_and_a_node_are_lost(watched: Watched) -> None:
    assert watched.fired("IndexShardDown") == []
    watched.tell("replica")
    until(lambda: watched.fired("IndexShardDown"), "IndexShardDown")
    watched.tell("node")
    until(lambda: watched.fired("NodeDown") or watched.fired("NodeLost"), "a lost node")
