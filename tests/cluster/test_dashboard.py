"""Errors for a missing dashboard, token or cluster."""

import http.server
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys import cli
from raysys.cluster import (
    Dashboard,
    Head,
    _dashboard,
    enable_token_auth,
    find_dashboard,
    submission_dashboard,
)
from raysys.errors import RaysysError, ResourceError, UnavailableError
from raysys.ray_internals import local_processes
from raysys.storage import Storage


class _FakeDashboard(http.server.BaseHTTPRequestHandler):
    """Status 401 without a token, 403 for a token other than `right`, like Ray's."""

    def do_GET(self) -> None:
        header = self.headers.get("Authorization")
        status = 401 if header is None else 200 if header == "Bearer right" else 403
        if self.path == "/broken":
            status = 500
        self.send_response(status)
        self.end_headers()
        session = {"session_name": "session_1"} if self.path == "/api/version" else {}
        self.wfile.write(json.dumps({"path": self.path, **session}).encode())

    def log_message(self, *_: object) -> None:
        """No log lines."""


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _FakeDashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home folder of a user without any settings."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that it is restored if the test sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_token_is_read_from_the_variable_or_from_a_file(
    url: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="requires the cluster's token, and none is set"):
        Dashboard(url).get("/x")
    (empty_home / ".ray").mkdir()
    (empty_home / ".ray" / "auth_token").write_text("right\n")
    assert Dashboard(url).get("/x") == {"path": "/x"}
    (empty_home / "other").write_text("wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(empty_home / "other"))
    with pytest.raises(UnavailableError, match="rejects the token") as refused:
        Dashboard(url).get("/x")
    assert "wrong" not in str(refused.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert Dashboard(f"{url}/").get("/x") == {"path": "/x"}


def test_errors_of_the_dashboard_contain_the_path(
    url: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with pytest.raises(UnavailableError, match="/broken answers 500"):
        Dashboard(url).get("/broken")
    with pytest.raises(
        UnavailableError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"
    ):
        Dashboard("http://127.0.0.1:9").get("/x")


def test_a_token_is_created_that_only_its_user_can_read(empty_home: Path) -> None:
    enable_token_auth()
    path = empty_home / ".ray" / "auth_token"
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.environ["RAY_AUTH_MODE"] == "token"
    enable_token_auth()
    assert path.read_text() == token


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_ADDRESS", "http://elsewhere:8265"),
        ("RAY_AUTH_TOKEN", "right"),
        ("RAY_AUTH_TOKEN_PATH", "/no/such/file"),
        ("RAY_AUTH_MODE", "disabled"),
    ],
)
def test_no_token_is_created_if_another_is_configured(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    enable_token_auth()
    assert not (empty_home / ".ray").exists()


def test_the_dashboard_is_ray_address_else_the_local_head(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(_dashboard, "local_head", lambda: None)
    with pytest.raises(RaysysError, match="there is no cluster: start one"):
        find_dashboard()
    head = Head(os.getpid(), "127.0.0.1:1", url)
    assert not head.is_alive  # a process that is not a head: a reused process id
    monkeypatch.setattr(_dashboard, "local_head", lambda: head)
    assert find_dashboard() == _dashboard.dashboard_of("127.0.0.1:1") == url
    assert _dashboard.gcs_of(f"{url}/") == "127.0.0.1:1"
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265/")
    assert find_dashboard() == "http://elsewhere:8265"


def test_a_process_connects_to_a_dashboards_cluster_if_that_has_a_node_here(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    monkeypatch.setattr(_dashboard, "local_head", lambda: None)
    raylet = ["/ray/raylet/raylet", "--gcs-address=10.0.0.7:6379", "--session-name=session_1"]
    monkeypatch.setattr(local_processes, "commands", lambda: iter([(1, ["init"]), (2, raylet)]))
    assert _dashboard.gcs_of(url) == "10.0.0.7:6379"
    monkeypatch.setattr(local_processes, "commands", lambda: iter([(1, ["init"])]))
    with pytest.raises(UnavailableError, match=r"no node on this machine.*`raysys submit FILE`"):
        _dashboard.gcs_of(url)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "local"])
def test_nothing_at_the_address_of_a_gcs_is_said_so(address: str) -> None:
    for look in (_dashboard.dashboard_of, _dashboard.gcs_of):
        with pytest.raises(UnavailableError, match=rf"answers at {address} .*http://HOST:8265"):
            look(address)


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize(
    "command",
    [
        ["jobs"], ["status"], ["logs", "x"], ["stop", "x"], ["schedule", "list"],
        ["schedule", "remove", "x"],
    ],
)  # fmt: skip
def test_commands_that_look_start_nothing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_dashboard, "start_local", pytest.fail)
    done = CliRunner().invoke(cli.app, command)
    assert isinstance(done.exception, RaysysError)
    assert "there is no cluster: start one on this machine" in str(done.exception)


def test_a_failed_submission_stops_the_head_that_it_started_and_no_other(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    head, actions = Head(1, "127.0.0.1:1", "http://127.0.0.1:2"), list[str]()
    monkeypatch.setattr(_dashboard, "local_head", lambda: None)
    monkeypatch.setattr(_dashboard, "start_local", lambda _: actions.append("start") or head)
    monkeypatch.setattr(_dashboard, "stop_local", lambda _: actions.append("stop"))
    with submission_dashboard(storage) as address:
        assert address == "http://127.0.0.1:2"
    assert actions == ["start"]
    with pytest.raises(KeyboardInterrupt), submission_dashboard(storage):
        raise KeyboardInterrupt
    assert actions == ["start", "start", "stop"]
    monkeypatch.setattr(_dashboard, "local_head", lambda: head)
    with pytest.raises(ResourceError), submission_dashboard(storage):
        raise ResourceError("too large")
    assert actions == ["start", "start", "stop"]
