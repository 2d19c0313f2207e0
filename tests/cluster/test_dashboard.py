"""Errors for a missing dashboard, token or cluster."""

import http.server
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysys.cluster import Dashboard, Head, enable_token_auth, find_dashboard, remembered
from raysys.errors import RaysysError, UnavailableError
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
        self.wfile.write(json.dumps({"path": self.path}).encode())

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
    empty_home: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RaysysError, match="there is no cluster: start one"):
        find_dashboard(storage)
    # A running process that is not a head: a reused process id.
    state = {"pid": os.getpid(), "address": "127.0.0.1:1", "dashboard_url": "http://127.0.0.1:2"}
    storage.write_json("cluster/local.json", state)
    assert remembered(storage) is None
    monkeypatch.setattr(Head, "is_alive", True)
    assert find_dashboard(storage) == "http://127.0.0.1:2"
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265/")
    assert find_dashboard(storage) == "http://elsewhere:8265"
