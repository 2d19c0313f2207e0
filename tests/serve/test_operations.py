"""What goes on around an endpoint: updates, deaths, overload, keys, caches, metrics."""

import concurrent.futures
import hashlib
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.util.state import list_actors

from raysys import cluster
from raysys.errors import RaysysError
from raysys.gateway import create_key, read_keys, revoke_key
from raysys.gateway._wire import GATEWAY_NAME
from raysys.serve import Batching, Endpoint, HTTPOptions, undeploy
from raysys.storage import Storage
from tests.serve.conftest import Deployer
from tests.serve.serving import (
    PATIENCE_S,
    Client,
    Load,
    Reply,
    counted_graph,
    eventually,
    held_graph,
    kill,
    kinds_graph,
    load,
    post,
    stamped_graph,
)

CACHE_S = 1.0
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def stamped(deployer: Deployer) -> Iterator[Endpoint]:
    """Two deployments that say their version, two replicas of the entry."""
    yield deployer("stamped", stamped_graph(1), replicas=2)
    undeploy("stamped")


@pytest.fixture(scope="module")
def held(deployer: Deployer) -> Iterator[Endpoint]:
    """One replica, one row a batch, three rows in the queue."""
    batching = Batching(max_batch_size=1, max_queued_rows=3)
    yield deployer("held", held_graph(), batching=batching, deadline_s=20.0)
    undeploy("held")


@pytest.fixture(scope="module")
def guarded(deployer: Deployer) -> Iterator[Endpoint]:
    """Wants a key, and keeps answers."""
    yield deployer(
        "guarded", counted_graph(), protected=True, http=HTTPOptions(cache_ttl_s=CACHE_S)
    )
    undeploy("guarded")


def number(count: int) -> dict[str, int]:
    return {"x": count}


def pids(running: Load, last: int = 50) -> set[int]:
    """Processes of the nodes that gave the last answers."""
    return {reply.json["pid"] for _, reply in running.replies[-last:] if reply.status == 200}


def replica_pids(endpoint: Endpoint) -> set[int]:
    """Processes that serve HTTP."""
    alive = list_actors(
        ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")], limit=1000
    )
    prefix = f"ServeReplica:{endpoint.name}-v"
    return {
        one.pid for one in alive if one.class_name.startswith(prefix) and ":entry" in one.class_name
    }


# --- updates ---


def test_an_update_fails_no_request_and_mixes_no_versions(
    stamped: Endpoint, deployer: Deployer
) -> None:
    with load(stamped.url, number) as running:
        running.wait_for(50)
        updated = deployer("stamped", stamped_graph(2), replicas=2)
        running.wait_for(50)
    assert updated.version == stamped.version + 1
    answers = running.answers()
    assert [one["x"] for one in answers] == [number for number, _ in running.replies]
    assert all(one["near"] == one["far"] for one in answers)
    versions = [one["near"] for one in answers]
    assert set(versions[:50]) == {1}
    assert set(versions[-50:]) == {2}


def test_a_version_that_cannot_start_leaves_the_old_one(
    stamped: Endpoint, deployer: Deployer
) -> None:
    before = post(stamped.url, {"x": 0}).json["near"]
    with load(stamped.url, number, pause_s=0.05) as running:
        with pytest.raises(RaysysError, match=r"cannot start(.|\n)*no weights at that path"):
            deployer("stamped", stamped_graph(9, broken=True), replicas=2)
        running.wait_for(20)
    assert {one["near"] for one in running.answers()} == {before}


def test_a_version_whose_answers_cannot_be_sent_leaves_the_old_one(deployer: Deployer) -> None:
    endpoint = deployer("kinds", kinds_graph())
    expected = b'{"1":1.10,"set":[1,2],"at":null,"nan":null}'
    assert post(endpoint.url, {"x": 1}).body == expected
    with pytest.raises(RaysysError, match=r"the answer of node 'answer' cannot be sent"):
        deployer("kinds", kinds_graph(is_complex=True))
    assert post(endpoint.url, {"x": 1}).body == expected
    undeploy("kinds")


def test_an_update_that_moves_an_application_ends_no_request(
    deployer: Deployer, tmp_path: Path
) -> None:
    endpoint = deployer("moving", held_graph(), route="/before", deadline_s=PATIENCE_S)
    gate = tmp_path / "gate"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, endpoint.url, {"ms": 0, "gate": str(gate)})
        eventually(Path(f"{gate}.held").exists)
        moved = deployer("moving", held_graph(), route="/after")
        assert not held.done()
        assert moved.version == endpoint.version + 1
        assert post(moved.url, {"ms": 0, "gate": ""}).status == 200
        assert post(endpoint.url, {"ms": 0, "gate": ""}).status == 404
        gate.touch()
        assert held.result(PATIENCE_S).status == 200
    undeploy("moving")


# --- deaths ---


def test_killed_replicas_fail_no_request_when_there_are_two(stamped: Endpoint) -> None:
    with load(stamped.url, number) as running:
        for _ in range(2):
            eventually(lambda: len(pids(running)) == 2)
            before, replicas = pids(running), replica_pids(stamped)
            kill(min(replicas))
            running.wait_for(100)
            # Serve puts another in its place, with processes of its own.
            eventually(lambda: len(replica_pids(stamped) - {min(replicas)}) == 2)  # noqa: B023
            eventually(lambda: len(pids(running)) == 2 and pids(running) != before)  # noqa: B023
    assert running.answers()


def test_requests_are_held_while_the_only_replica_starts_again(held: Endpoint) -> None:
    pid = post(held.url, {"ms": 0, "gate": ""}).json["pid"]
    (replica,) = replica_pids(held)
    kill(replica)
    reply = post(held.url, {"ms": 0, "gate": ""})
    assert reply.status == 200
    assert reply.json["pid"] != pid


# --- deadlines and overload ---


class Gate:
    """Holds the only replica of `held`, both processes of its nodes, until it is opened."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self._paths, self._url = (folder / "first", folder / "second"), endpoint.url
        self._pool = concurrent.futures.ThreadPoolExecutor(16)

    def __enter__(self) -> "Gate":
        for path in self._paths:  # the second overtakes the first, in the process that stands by
            held = self.post({"ms": 0, "gate": str(path)})
            eventually(Path(f"{path}.held").exists)
        self.last = held
        return self

    def post(self, body: Any = None, **headers: str) -> concurrent.futures.Future[Reply]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._pool.submit(post, self._url, body or {"ms": 0, "gate": ""}, named)

    def open(self) -> None:
        for path in self._paths:
            path.touch()

    def __exit__(self, *_: object) -> None:
        self.open()
        self._pool.shutdown()


def test_what_is_late_is_told_so_at_its_deadline(held: Endpoint, tmp_path: Path) -> None:
    with Gate(held, tmp_path) as gate:
        waits = gate.post(x_request_timeout_seconds="0.3").result(PATIENCE_S)
        assert waits.status == 504
        assert not gate.last.done()
        gate.open()
        assert gate.last.result(PATIENCE_S).status == 200
    runs = post(held.url, {"ms": 1500, "gate": ""}, {"x-request-timeout-seconds": "0.3"})
    assert runs.status == 504
    bad = post(held.url, {"ms": 0, "gate": ""}, {"x-request-timeout-seconds": "soon"})
    assert bad.status == 400


def test_what_is_too_much_is_refused_at_once(held: Endpoint, tmp_path: Path) -> None:
    with Gate(held, tmp_path) as gate:
        # Three rows may wait, one of them instead of the batch that was overtaken.
        asked = [gate.post() for _ in range(12)]
        eventually(lambda: sum(one.done() for one in asked) == 10)
        refused = [one.result() for one in asked if one.done()]
        assert {reply.status for reply in refused} == {503}
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        time.sleep(0.5)
        assert sum(one.done() for one in asked) == 10
        gate.open()
        assert gate.last.result(PATIENCE_S).status == 200
        accepted = [one.result(PATIENCE_S) for one in asked if one.result() not in refused]
    assert [reply.status for reply in accepted] == [200] * 2


def test_under_overload_what_is_accepted_is_in_time(held: Endpoint) -> None:
    for _ in range(5):  # the replica learns how long a batch takes
        assert post(held.url, {"ms": 50, "gate": ""}).status == 200
    replies: list[Reply] = []

    def run() -> None:
        client = Client(held.url)
        for _ in range(10):
            replies.append(client.post({"ms": 50, "gate": ""}))
        client.close()

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(replies) == 120
    assert {reply.status for reply in replies} == {200, 503}
    assert all("retry-after" in reply.headers for reply in replies if reply.status == 503)


# --- whose request it is ---


def test_requests_are_known_by_their_ids_in_every_deployment(stamped: Endpoint) -> None:
    reply = post(stamped.url, {"x": 1}, {"x-request-id": "ours-1", "traceparent": TRACE})
    assert reply.headers["x-request-id"] == reply.json["request"] == "ours-1"
    assert reply.json["trace"] == TRACE
    made = [post(stamped.url, {"x": 1}, {"traceparent": "nonsense"}) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in made]
    assert [reply.json["request"] for reply in made] == ids
    assert len(set(ids)) == 2
    traces = [reply.json["trace"] for reply in made]
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace) for trace in traces)
    assert len(set(traces)) == 2
    assert post(stamped.url, b"bad", {"x-request-id": "ours-2"}).headers["x-request-id"] == "ours-2"
    elsewhere = post(f"{stamped.base_url}/nowhere", b"", {"x-request-id": "ours-3"})
    assert elsewhere.headers["x-request-id"] == "ours-3"


def test_each_row_of_a_batch_has_its_own_request(stamped: Endpoint) -> None:
    def ask(name: str) -> bool:
        return post(stamped.url, {"x": 1}, {"x-request-id": name}).json["request"] == name

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, [f"r{n}" for n in range(64)]))


# --- keys ---


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_let_in_what_their_limits_allow(guarded: Endpoint, serving_storage: Storage) -> None:
    key = create_key(serving_storage, "ann", rate_per_s=20, max_body_bytes=200)
    assert post(guarded.url, {"x": 0}).status == 401
    assert post(guarded.url, {"x": 0}, bearer("rs_guess")).status == 401
    eventually(lambda: post(guarded.url, {"x": 0}, bearer(key)).status == 200)
    assert post(guarded.url, {"x": 0}, {"x-api-key": key}).status == 200
    assert guarded.predict({"x": 0}, api_key=key)["count"] >= 0
    # Neither a name, nor the hash that is kept, is a key.
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert post(guarded.url, {"x": 0}, bearer("ann")).status == 401
    assert post(guarded.url, {"x": 0}, bearer(digest)).status == 401
    infer = f"{guarded.base_url}/v2/models/guarded/infer"
    assert post(infer, b"{}").status == 401
    large = post(guarded.url, b'{"x": 0}' + b" " * 300, bearer(key))
    assert large.status == 413
    assert post(guarded.url, b'{"x": 0}' + b" " * 100, bearer(key)).status == 200

    refused = eventually(
        lambda: [r for r in (post(guarded.url, {"x": 0}, bearer(key)) for _ in range(60))
                 if r.status == 429]
    )  # fmt: skip
    assert "retry-after" in refused[0].headers
    eventually(lambda: post(guarded.url, {"x": 0}, bearer(key)).status == 200)

    kept = serving_storage.read_bytes("serve/keys/ann.json")
    assert kept is not None
    assert key.encode() not in kept
    assert key.removeprefix("rs_").encode() not in kept
    assert digest.encode() in kept
    revoke_key(serving_storage, "ann")
    assert read_keys(serving_storage) == []
    eventually(lambda: post(guarded.url, {"x": 0}, bearer(key)).status == 401)


def test_names_of_keys_are_checked(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert create_key(storage, "ann") != create_key(storage, "bob")
    with pytest.raises(RaysysError, match="exists"):
        create_key(storage, "ann")
    with pytest.raises(RaysysError, match="up to 64"):
        create_key(storage, "an n\n")
    with pytest.raises(RaysysError, match=r"unknown key 'eve'.*'ann', 'bob'"):
        revoke_key(storage, "eve")


# --- caches ---


def test_answers_are_kept_for_a_while(guarded: Endpoint, serving_storage: Storage) -> None:
    key = create_key(serving_storage, "cache", rate_per_s=10_000)
    eventually(lambda: post(guarded.url, {"x": 1}, bearer(key)).status == 200)

    def ask(x: int) -> tuple[int, bool]:
        reply = post(guarded.url, {"x": x}, bearer(key))
        return reply.json["count"], reply.headers.get("x-cache") == "hit"

    pairs = []
    for x in range(100, 110):  # the clock may end an answer's life between two requests
        (first, fresh), (second, hit) = ask(x), ask(x)
        assert not fresh
        assert hit is (first == second)
        pairs.append(hit)
    assert sum(pairs) > 5
    kept, _ = ask(200)
    eventually(lambda: ask(200) == (kept + 1, False))
    revoke_key(serving_storage, "cache")


# --- what can be seen ---


def test_metrics_stand_in_rays_prometheus_endpoint(stamped: Endpoint) -> None:
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = [
        rf'ray_raysys_serve_node_seconds_count{{[^}}]*application="stamped"[^}}]*node="{name}"'
        for name in ("near", "far", "answer")
    ]
    wanted += [
        r'ray_raysys_serve_batch_rows_count{[^}]*application="stamped"',
        r'ray_raysys_serve_latency_seconds_bucket{[^}]*application="stamped"',
        r'ray_raysys_serve_queue_rows{[^}]*application="stamped"',
    ]

    def all_there() -> bool:
        assert post(stamped.url, {"x": 1}).status == 200
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:
            text = reply.read().decode()
        return all(re.search(pattern, text) for pattern in wanted)

    eventually(all_there)


def gateway() -> Any:
    return ray.get_actor(GATEWAY_NAME, cluster.NAMESPACE)


def gateway_process(endpoint: Endpoint) -> psutil.Process:
    """The one of this cluster's processes that listens for gRPC."""
    assert endpoint.grpc_address
    port = int(endpoint.grpc_address.rpartition(":")[2])
    ours = psutil.Process().children(recursive=True)
    (front,) = [one for one in ours if port in {bound[1] for bound in listening(one)}]
    return front


def haproxies(endpoint: Endpoint) -> list[psutil.Process]:
    """Those that hold the endpoint's port; they are nobody's children."""
    port = int(endpoint.base_url.rpartition(":")[2])
    every = [one for one in psutil.process_iter() if one.name() == "haproxy"]
    return [one for one in every if port in {bound[1] for bound in listening(one)}]


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    try:
        found = process.net_connections("tcp")
    except psutil.Error:  # it has ended
        return []
    bound = [one.laddr for one in found if one.status == psutil.CONN_LISTEN]
    # A socket of IPv6 may be bound to an address of IPv4.
    return [(address.ip.removeprefix("::ffff:"), address.port) for address in bound]


def speaks_http(address: tuple[str, int]) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(address[0], address[0])
    client = Client(f"http://127.0.0.1:{address[1]}/v2/health/ready", timeout_s=5)
    client._connection.host = host
    try:
        return bool(client.ask("GET").status)
    except Exception:
        return False
    finally:
        client.close()


def test_everything_listens_on_loopback_only(stamped: Endpoint, held: Endpoint) -> None:
    front = gateway_process(stamped)
    haproxy = haproxies(stamped)
    assert haproxy
    ports = {address for one in haproxy for address in listening(one)}
    assert {host for host, _ in ports} == {"127.0.0.1"}
    assert int(stamped.base_url.rpartition(":")[2]) in {port for _, port in ports}
    assert stamped.grpc_address
    grpc_port = int(stamped.grpc_address.rpartition(":")[2])
    assert [host for host, port in listening(front) if port == grpc_port] == ["127.0.0.1"]
    replicas = replica_pids(stamped) | replica_pids(held)
    assert len(replicas) == 3
    for process in [front, *map(psutil.Process, replicas)]:
        # Ray's own worker ports, which speak gRPC, are there too.
        servers = [address for address in listening(process) if speaks_http(address)]
        assert servers
        assert {host for host, _ in servers} == {"127.0.0.1"}


def test_replicas_answer_the_gateway_only(stamped: Endpoint) -> None:
    process = psutil.Process(min(replica_pids(stamped)))
    (address,) = [one for one in listening(process) if speaks_http(one)]
    url = f"http://{address[0]}:{address[1]}/stamped"
    assert post(url, {"x": 1}).status == 403
    assert post(url, {"x": 1}, {"x-raysys-token": "guess"}).status == 403
    # What a client says of it is not passed on.
    assert post(stamped.url, {"x": 1}, {"x-raysys-token": "guess"}).status == 200


# --- the gateway's own deaths ---


def test_haproxy_comes_back(stamped: Endpoint) -> None:
    front = gateway_process(stamped)
    before = haproxies(stamped)
    assert before
    for one in before:
        kill(one.pid)

    def answers() -> bool:
        try:
            return post(stamped.url, {"x": 1}).status == 200
        except OSError:
            return False

    eventually(lambda: not any(one.is_running() and one.status() != "zombie" for one in before))
    eventually(answers)
    assert gateway_process(stamped).pid == front.pid


def test_the_gateway_comes_back_with_all_it_knew(
    stamped: Endpoint, guarded: Endpoint, serving_storage: Storage
) -> None:
    import tritonclient.grpc

    key = create_key(serving_storage, "gate")
    eventually(lambda: post(guarded.url, {"x": 0}, bearer(key)).status == 200)
    pid = gateway_process(stamped).pid
    with load(stamped.url, number, clients=2, pause_s=0.05) as running:
        running.wait_for(10)
        ray.kill(gateway(), no_restart=False)
        eventually(lambda: not psutil.pid_exists(pid))
        marks = len(running.replies)

        def serves() -> bool:
            later = running.replies[marks:]
            return len(later) > 40 and {reply.status for _, reply in later[-40:]} == {200}

        eventually(serves)
    address = ray.get(gateway().address.remote())
    assert f"http://{address['host']}:{address['port']}" == stamped.base_url
    assert f"{address['host']}:{address['grpc_port']}" == stamped.grpc_address
    assert post(guarded.url, {"x": 0}).status == 401
    assert post(guarded.url, {"x": 0}, bearer(key)).status == 200
    client = tritonclient.grpc.InferenceServerClient(stamped.grpc_address)
    x = tritonclient.grpc.InferInput("x", [1], "INT64")
    x.set_data_from_numpy(np.array([7]))
    assert client.infer("stamped", [x]).as_numpy("x") == [7]
    client.close()
    revoke_key(serving_storage, "gate")
