"""What an API key is for, and what is counted of its use."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys import audit, cli
from raysys.errors import ArgumentError, RaysysError
from raysys.gateway import create_key, read_keys
from raysys.storage import Storage
from tests.gateway.fronts import Front, Maker, Starter, app, eventually, key

KEYS = [
    key("all", "rs_all"),
    key("films", "rs_films", applications=("films",)),
    key("viewer", "rs_viewer", scope="read"),
    key("auditor", "rs_auditor", scope="read", applications=("films", "flights")),
    key("slow", "rs_slow", rate=1),
    key("old", "rs_old", expires=1_700_000_000),
]
METADATA, STATS = "/v2/models/films", "/v2/models/films/stats"
INDEX, ALL_STATS = "/v2/repository/index", "/v2/models/stats"


@pytest.fixture
def front(start: Starter, replica: Maker) -> Front:
    names = ("films", "flights", "films-new", "open")
    backends = [app(name, protected=name != "open") for name in names]
    return start(backends, {name: {0: replica(name).address} for name in names}, KEYS)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("all", {"films", "flights", "new", METADATA, STATS, INDEX, ALL_STATS}),
        ("films", {"films", METADATA, STATS}),
        ("viewer", {METADATA, STATS, INDEX, ALL_STATS}),
        ("auditor", {METADATA, STATS}),
        ("old", set()),
        ("none", set()),
    ],
)
def test_a_key_is_for_its_scope_and_applications_alone(
    name: str, allowed: set[str], front: Front
) -> None:
    headers = {"authorization": f"Bearer rs_{name}"}
    asked = {
        "films": ("POST", "/films"), "flights": ("POST", "/v2/models/flights/infer"),
        "new": ("POST", "/films-new"), INDEX: ("POST", INDEX),
        **{path: ("GET", path) for path in (METADATA, STATS, ALL_STATS)},
    }  # fmt: skip
    replies = {
        label: front.ask(
            path, method=method, headers=headers, body=b"{}" if method == "POST" else b""
        )
        for label, (method, path) in asked.items()
    }
    assert {label for label, reply in replies.items() if reply.status == 200} == allowed
    refused = 401 if name in ("old", "none") else 403
    for label, reply in replies.items():
        if label not in allowed:
            assert reply.status == refused
            assert "key" in reply.json["error"]
            assert reply.json["request_id"] == reply.headers["x-request-id"]
    assert front.ask("/open", headers=headers).status == 200


def test_the_use_of_keys_is_counted_with_its_refusals_and_addresses(front: Front) -> None:
    def ask(name: str, path: str, times: int) -> None:
        for _ in range(times):
            front.ask(path, headers={"x-api-key": f"rs_{name}"}, body=b"{}", method="POST")

    ask("films", "/films", 3)
    ask("films", "/flights", 2)
    ask("viewer", "/films", 1)
    ask("old", "/films", 2)
    ask("stranger", "/films", 4)
    ask("slow", "/films", 2)
    uses = {
        ("films", "admitted"): 3, ("films", "application"): 2, ("viewer", "scope"): 1,
        ("old", "expired"): 2, ("", "unknown"): 4, ("slow", "admitted"): 1, ("slow", "rate"): 1,
    }  # fmt: skip
    used = {name: count for name, count in front.proxy.key_uses().items() if count}
    assert used == uses
    assert front.proxy.key_addresses() == {"films": 1, "viewer": 1, "slow": 1}
    front.ask("/films", headers={"x-api-key": "rs_films"}, body=b"{}", method="POST")
    eventually(lambda: front.proxy.key_uses()["films", "admitted"] == 4)


def test_a_new_key_serves_all_applications_and_its_grants_are_written_down(
    storage: Storage,
) -> None:
    create_key(storage, "ann")
    create_key(storage, "bob", scope="read", applications=["films"])
    ann, bob = read_keys(storage)
    assert (ann.scope, ann.applications) == ("serve", ())
    assert (bob.scope, bob.applications) == ("read", ("films",))
    (line,) = [line for line in audit.read(storage, action="key.add") if line.subject == "bob"]
    assert (line.details["scope"], line.details["applications"]) == ("read", ["films"])
    with pytest.raises(RaysysError, match=r"unknown scope 'serv' .*'serve'.*; scopes: read, serve"):
        create_key(storage, "eve", scope="serv")  # type: ignore[arg-type]
    for applications in (["films flights"], ["films serve\nann/*"], [""]):
        with pytest.raises(RaysysError, match=r"application names .*: use letters"):
            create_key(storage, "eve", applications=applications)
    with pytest.raises(ArgumentError, match="applications"):
        create_key(storage, "eve", applications="films")
    assert [one.name for one in read_keys(storage)] == ["ann", "bob"]


def test_the_command_line_makes_and_lists_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path))
    runner = CliRunner()
    flags = ["--scope", "read", "--application", "films", "--application", "flights"]
    assert runner.invoke(cli.app, ["key", "add", "ann", *flags]).stdout.startswith("rs_")
    assert json.loads((tmp_path / "serve/keys/ann.json").read_text())["scope"] == "read"
    (ann,) = runner.invoke(cli.app, ["key", "list"]).stdout.splitlines()
    assert ann.startswith("ann: read films, flights, 100 requests/s, ")
