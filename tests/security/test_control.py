"""Whoever has no token, a wrong one, or an API key, gets nothing done on a cluster."""

import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import grpc
import psutil
import pytest

from raysys import audit
from tests.security import _doors
from tests.security.conftest import BIN, Target

# What Ray answers to everybody, by its design: no state of the cluster beyond "it is alive", and
# what the dashboard's login needs. `/-/healthz` and the raylet's are routes of agents alone.
OPEN_DASHBOARD = {
    ("GET", "/"), ("GET", "/favicon.ico"), ("GET", "/api/authentication_mode"),
    ("GET", "/api/gcs_healthz"), ("GET", "/api/healthz"), ("GET", "/api/local_raylet_healthz"),
}  # fmt: skip
OPEN_AGENT = {("GET", "/api/healthz"), ("GET", "/api/local_raylet_healthz")}
ENVIRONMENTS = [
    ("POST", "/get_or_create_runtime_env"),
    ("POST", "/delete_runtime_env_if_possible"),
    ("POST", "/get_runtime_envs_info"),
]
DENIED = {401, 403}


def ask(
    url: str, method: str = "GET", token: str | None = None, body: object = None,
    header: str = "Authorization", app: str | None = None,
) -> int:  # fmt: skip
    """The status of an answer."""
    headers = {"Content-Type": "application/json"} | ({"X-Raysys-App": app} if app else {})
    if token is not None:
        headers[header] = f"Bearer {token}" if "uthorization" in header else token
    data = json.dumps(body or {}).encode() if method in ("POST", "PUT") else None
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def speaks_grpc(address: str, method: str) -> bool:
    codes = _doors.call(address, [method], None).values()
    return bool({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED} & set(codes))


# --- every door of Ray ---


def test_every_route_of_the_dashboard_wants_the_token(target: Target) -> None:
    known = _doors.routes("*_head.py")
    assert len(known) > 50
    assert {("POST", "/api/jobs/"), ("PUT", "/api/serve/applications/")} <= set(known)
    let_in = {
        (method, path, who): status
        for method, path in known
        for who, token in target.intruders().items()
        if (method, path) not in OPEN_DASHBOARD
        if (status := ask(f"{target.dashboard}{path}", method, token)) not in DENIED
    }
    assert let_in == {}


@pytest.mark.parametrize("header", ["X-Ray-Authorization", "Cookie"])
def test_other_ways_to_present_a_token_are_no_way_around(target: Target, header: str) -> None:
    for token in ("0" * 64, target.key):
        value = f"ray-authentication-token={token}" if header == "Cookie" else token
        assert ask(f"{target.dashboard}/api/jobs/", token=value, header=header) in DENIED


@pytest.mark.parametrize(
    "path", ["//api/jobs/", "/static/../api/jobs/", "/static/%2e%2e/api/jobs/", "/./api/jobs/"]
)
def test_a_crooked_path_is_no_way_around(target: Target, path: str) -> None:
    assert ask(f"{target.dashboard}{path}") in DENIED | {404}


def test_every_open_port_is_accounted_for_and_wants_the_token(target: Target) -> None:
    """Whatever listens, of Ray's and of ours, is asked by all that is known of it."""
    names, seen = _doors.methods(), {}
    for port, (host, command) in target.listening().items():
        address = f"{host}:{port}"
        # HAProxy speaks HTTP/2 as well, and gRPC's answer to a 404 is UNIMPLEMENTED.
        if "haproxy" not in command and speaks_grpc(address, names[0]):
            for who, token in target.intruders().items():
                answers = _doors.call(address, names, token)
                codes = set(answers.values())
                refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
                assert codes <= refused, (address, command, who, answers)
            seen[port] = sum(code == grpc.StatusCode.UNAUTHENTICATED for code in answers.values())
            continue
        seen[port] = kind = _http_port(target, address, command)
        assert kind, f"{address} of {command} is not known"
    kinds = list(seen.values())
    # HAProxy is a process of its own, outside of the head's: its port is asked below.
    for kind in ("dashboard", "agent", "environments", "metrics", "replica", "holding proxy"):
        assert kind in kinds, _told(target, seen)
    # GCS, raylet, object manager, Ray Client, agent, workers.
    assert sum(isinstance(kind, int) and kind > 0 for kind in kinds) >= 6, _told(target, seen)


def _told(target: Target, seen: Mapping[int, object]) -> str:
    listening = target.listening().items()
    return "\n".join(f"{port} {seen.get(port)} {command[:90]}" for port, (_, command) in listening)


def _tells_figures(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.read(6) == b"# HELP"
    except urllib.error.HTTPError:
        return False


def _http_port(target: Target, address: str, command: str) -> str | None:
    """What listens there; all of its doors are tried on the way."""
    url = f"http://{address}"
    if address == target.dashboard.removeprefix("http://"):
        return "dashboard"
    if "haproxy" in command:
        return "gateway"  # below
    if _tells_figures(url):
        # For Prometheus, readable by all who reach the port; nothing can be told to it.
        for method in ("POST", "PUT", "DELETE"):
            assert ask(url, method) == 405
        return "metrics"
    if ask(f"{url}/api/healthz") == 200:
        for method, path in _doors.routes("*_agent.py"):
            for token in target.intruders().values():
                if (method, path) not in OPEN_AGENT:
                    assert ask(url + path, method, token) in DENIED, (method, path)
        return "agent"
    if "RuntimeEnvAgent" in command:
        for method, path in ENVIRONMENTS:
            for token in target.intruders().values():
                assert ask(url + path, method, token) in DENIED, path
        return "environments"
    if "ServeReplica" in command or "Gateway" in command:
        # A replica answers the gateway's own token alone; the holding proxy passes on what it got.
        before = target.runs
        for token in target.intruders().values():
            said = ask(f"{url}/guarded", "POST", token, {"x": 1}, app="guarded")
            assert said in DENIED, (command, said)
        assert target.runs == before
        return "replica" if "ServeReplica" in command else "holding proxy"
    return None


def test_nothing_is_left_behind_by_any_of_it(target: Target) -> None:
    assert psutil.pid_exists(target.pid)
    before = target.jobs()
    mark = target.folder / "executed"
    body = {"entrypoint": f"touch {mark}", "runtime_env": {}, "metadata": {}}
    agents = [
        f"http://{host}:{port}"
        for port, (host, command) in target.listening().items()
        if "DashboardAgent" in command
        and not speaks_grpc(f"{host}:{port}", _doors.methods()[0])
        and not _tells_figures(f"http://{host}:{port}")
    ]
    doors = [f"{target.dashboard}/api/jobs/", *(f"{a}/api/job_agent/jobs/" for a in agents)]
    assert len(doors) > 1
    for token in target.intruders().values():
        for door in doors:
            assert ask(door, "POST", token, body) in DENIED
        for job in before:
            assert ask(f"{target.dashboard}/api/jobs/{job}/stop", "POST", token) in DENIED
            assert ask(f"{target.dashboard}/api/jobs/{job}", "DELETE", token) in DENIED
        serve = f"{target.dashboard}/api/serve/applications/"
        assert ask(serve, "DELETE", token) in DENIED
        assert ask(serve, "PUT", token, {"applications": []}) in DENIED
    assert target.jobs() == before
    assert not mark.exists()
    assert ask(_url(target), "POST", target.key, {"x": 1}) == 200  # the application is still there


_CONNECT = """
import sys, ray
ray.init(sys.argv[1], logging_level="error")
ray.get(ray.remote(num_cpus=0)(lambda: open(sys.argv[2], "w").close()).remote(), timeout=20)
"""


def _intrude(target: Target, token: str | None, *command: str | Path) -> int:
    """The exit status of a client that has another token, or none."""
    env = {name: value for name, value in target.env.items() if "RAY_AUTH" not in name}
    env |= {"RAY_AUTH_MODE": "disabled"} if token is None else {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}  # fmt: skip
    env |= {"HOME": str(target.folder / "nobody"), "RAYSYS_STORAGE": str(target.folder / "else")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120,
                          cwd=target.folder / "work")  # fmt: skip
    return done.returncode


def test_clients_with_another_token_do_not_connect(target: Target) -> None:
    """Those of `ray://` neither: above. They only try for half a minute before they say so."""
    mark = target.folder / "connected"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _CONNECT, target.address, str(mark)],
            env={name: value for name, value in target.env.items() if "RAY_AUTH" not in name}
            | {"HOME": str(target.folder / "nobody"), "RAY_AUTH_MODE": "token",
               "RAY_AUTH_TOKEN": token},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for token in ("0" * 64, target.key)
    ]  # fmt: skip
    for one in running:
        said = one.communicate(timeout=120)[1]
        assert one.returncode != 0
        assert "uthenticat" in said or "token" in said, said[-2000:]
    assert not mark.exists()


def test_commands_with_another_token_do_nothing(target: Target) -> None:
    before, mark = target.jobs(), target.folder / "commanded"
    (target.folder / "work" / "touch.py").write_text(f"open({str(mark)!r}, 'w')")
    at = f"--address={target.dashboard}"
    target.env["RAY_ADDRESS"] = target.dashboard
    try:
        for token in (None, target.key):
            assert _intrude(target, token, BIN / "raysys", "submit", "touch.py") == 1
        wrong = "0" * 64
        assert _intrude(target, wrong, BIN / "raysys", "stop", before[0]) == 1
        assert _intrude(target, wrong, BIN / "ray", "job", "submit", at, "--", "touch", mark) != 0
    finally:
        del target.env["RAY_ADDRESS"]
    assert target.jobs() == before
    assert not mark.exists()


# --- our own doors ---


def _url(target: Target) -> str:
    return f"http://127.0.0.1:{target.port}/guarded"


def test_a_protected_application_opens_to_good_keys_alone(target: Target) -> None:
    runs = target.runs
    strangers = {"none": None, "wrong": "rs_wrong", "the cluster's token": target.token,
                 **target.bad_keys}  # fmt: skip
    for who, secret in strangers.items():
        for path in ("", "/docs", "/openapi.json"):
            assert ask(_url(target) + path, "POST", secret, {"x": 1}) == 401, who
        model = f"http://127.0.0.1:{target.port}/v2/models/guarded"
        assert ask(model, "GET", secret) == 401, who
        assert ask(f"{model}/infer", "POST", secret) == 401, who
        assert ask(_url(target), "POST", secret, {"x": 1}, header="X-API-Key") == 401, who
    assert target.runs == runs
    assert ask(_url(target), "POST", target.key, {"x": 1}) == 200
    assert target.runs == runs + 1


def test_grpc_opens_to_good_keys_alone(target: Target) -> None:
    runs = target.runs
    with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for secret in (None, "rs_wrong", target.token, *target.bad_keys.values()):
            metadata = () if secret is None else (("authorization", f"Bearer {secret}"),)
            with pytest.raises(grpc.RpcError) as refused:
                infer(b"\n\x07guarded", timeout=10, metadata=metadata)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert target.runs == runs


def test_the_gateway_has_no_control_path_of_its_own(target: Target) -> None:
    """HAProxy is told by a socket file; replicas say they are alive only to those who know them."""
    base = f"http://127.0.0.1:{target.port}"
    for path in ("/-/alive", "/-/drain", "/stats", "/haproxy?stats", "/metrics", "/admin", "/"):
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert ask(base + path, method, target.token) == 404, (method, path)
    assert ask(f"{base}/v2/health/live") == 200  # open, and says no more than that
    assert ask(f"{base}/v2/health/ready") in (200, 503)


def test_the_token_and_keys_are_in_no_log(target: Target) -> None:
    """What was presented, good or bad, is written down nowhere."""
    owner = urllib.request.Request(
        f"{target.dashboard}/api/version", headers={"Authorization": f"Bearer {target.token}"}
    )
    with urllib.request.urlopen(owner) as reply:
        session = target.ray_folder / json.load(reply)["session_name"]
    assert session.joinpath("logs", "raylet.out").exists()
    secrets = [target.token, target.key, *target.bad_keys.values()]
    for file in [*session.joinpath("logs").rglob("*"), *Path(target.storage.root).rglob("*")]:
        if file.is_file():
            text = file.read_bytes()
            assert not any(secret.encode() in text for secret in secrets), file


def test_what_was_done_is_written_down_with_the_job_and_the_tokens_fingerprint(
    target: Target,
) -> None:
    by_action = {line.action: line for line in audit.read(target.storage)}
    assert {"up", "job.submit", "job.start", "deploy", "key.add", "key.revoke"} <= set(by_action)
    submitted, deployed = by_action["job.submit"], by_action["deploy"]
    assert (deployed.subject, deployed.details["version"]) == ("guarded", 1)
    assert deployed.origin["job"] == submitted.subject == by_action["job.start"].subject
    assert submitted.origin["host"] in deployed.origin["submitted_from"]
    assert deployed.actor["user"] == submitted.actor["user"]
    fingerprint = hashlib.sha256(target.token.encode()).hexdigest()[:8]
    assert submitted.actor["token"] == deployed.actor["token"] == f"sha256:{fingerprint}"
