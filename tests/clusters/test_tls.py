"""TLS between two nodes, and the clients that they reject."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from ray.util import get_node_ip_address

from raysys.cluster import make_certificates
from raysys.errors import RaysysError

_TOKEN = "a-token-of-this-test-of-sixty-four-characters-0123456789abcdef01"
_RAY = str(Path(sys.executable).with_name("ray"))
_ON_BOTH = """
import ray
ray.init("{address}", log_to_driver=False, logging_level="error")
@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id()
nodes = [ray.get(where.options(resources={{name: 1}}).remote()) for name in ("one", "two")]
sent = ray.put(bytes(3_000_000))
@ray.remote(num_cpus=1, resources={{"two": 1}})
def length(data):
    return len(data)
print(len(set(nodes)), ray.get(length.remote(sent)))
"""


@dataclass
class _Cluster:
    address: str
    environment: dict[str, str]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[_Cluster]:
    # Not below pytest's folder: the path of a Unix socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="raysys-tls-") as name:
        folder = Path(name)
        (folder / "token").write_text(_TOKEN)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **make_certificates(folder / "tls", []),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        }
        # Ray's clients turn loopback into this machine's own address.
        ip = get_node_ip_address()
        address = f"{ip}:{_free_port()}"
        shared = [
            "--block", "--num-cpus=1", f"--node-ip-address={ip}", "--disable-usage-stats",
            "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0",
        ]  # fmt: skip
        head = [
            _RAY, "start", "--head", *shared, f"--port={address.rpartition(':')[2]}",
            "--include-dashboard=false", f"--temp-dir={folder}/ray", '--resources={"one": 1}',
            f"--ray-client-server-port={_free_port()}",
            f"--dashboard-agent-listen-port={_free_port()}",
        ]  # fmt: skip
        worker = [
            _RAY, "start", f"--address={address}", *shared, '--resources={"two": 1}',
            f"--dashboard-agent-listen-port={_free_port()}",
        ]  # fmt: skip
        with (
            _started(head, environment, folder / "head.log"),
            _started(worker, environment, folder / "worker.log"),
        ):
            yield _Cluster(address, environment)


def _status(
    address: str, credentials: grpc.ChannelCredentials | None, token: str | None
) -> grpc.StatusCode:
    """Status code of a call to the cluster's GCS."""
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    channel = (
        grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    )
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.GetAllNodeInfo(
                gcs_service_pb2.GetAllNodeInfoRequest(), metadata=metadata, timeout=10
            )
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def _credentials(environment: dict[str, str], *, own: bool) -> grpc.ChannelCredentials:
    read = {name: Path(environment[f"RAY_TLS_{name}"]).read_bytes()
            for name in ("CA_CERT", "SERVER_KEY", "SERVER_CERT")}  # fmt: skip
    if not own:
        return grpc.ssl_channel_credentials(read["CA_CERT"])
    return grpc.ssl_channel_credentials(read["CA_CERT"], read["SERVER_KEY"], read["SERVER_CERT"])


def test_nodes_communicate_over_tls_and_reject_clients_without_certificate_or_token(
    two_nodes: _Cluster, tmp_path: Path
) -> None:
    # Both nodes run tasks, and an object of one is read on the other.
    code = _ON_BOTH.format(address=two_nodes.address)
    done = subprocess.run(
        [sys.executable, "-c", code], env=two_nodes.environment, capture_output=True, text=True,
        timeout=90,
    )  # fmt: skip
    assert done.stdout.strip() == "2 3000000", done.stderr

    own = _credentials(two_nodes.environment, own=True)
    without = _credentials(two_nodes.environment, own=False)
    other = make_certificates(tmp_path / "other", [])
    # Trusts the cluster's authority, but presents a certificate of another one.
    other["RAY_TLS_CA_CERT"] = two_nodes.environment["RAY_TLS_CA_CERT"]
    address = two_nodes.address
    assert _status(address, own, _TOKEN) == grpc.StatusCode.OK
    assert _status(address, own, None) == grpc.StatusCode.UNAUTHENTICATED
    assert _status(address, own, "wrong") == grpc.StatusCode.UNAUTHENTICATED
    assert _status(address, None, _TOKEN) == grpc.StatusCode.UNAVAILABLE
    assert _status(address, without, _TOKEN) == grpc.StatusCode.UNAVAILABLE
    assert _status(address, _credentials(other, own=True), _TOKEN) == grpc.StatusCode.UNAVAILABLE


def test_a_certificate_names_every_address_of_a_network(tmp_path: Path) -> None:
    environment = make_certificates(tmp_path, ["10.0.1.0/28", "head.example", "10.0.1.3"])
    certificate = x509.load_pem_x509_certificate(
        Path(environment["RAY_TLS_SERVER_CERT"]).read_bytes()
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    local = {"127.0.0.1", "::1", get_node_ip_address()}
    assert addresses == {f"10.0.1.{last}" for last in range(16)} | local
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "head.example"]
    authority = x509.load_pem_x509_certificate(Path(environment["RAY_TLS_CA_CERT"]).read_bytes())
    certificate.verify_directly_issued_by(authority)


def test_the_key_is_private_and_the_authoritys_key_is_discarded(tmp_path: Path) -> None:
    environment = make_certificates(tmp_path / "tls", [])
    assert stat.S_IMODE(Path(environment["RAY_TLS_SERVER_KEY"]).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    files = sorted(file.name for file in (tmp_path / "tls").iterdir())
    assert files == ["ca.crt", "node.crt", "node.key"]
    assert sum(b"PRIVATE KEY" in (tmp_path / "tls" / name).read_bytes() for name in files) == 1


def test_existing_certificates_are_not_overwritten(tmp_path: Path) -> None:
    make_certificates(tmp_path, [])
    with pytest.raises(RaysysError, match=r"already has ca.crt, node.crt, node.key"):
        make_certificates(tmp_path, [])


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("10.0.0.0/8", "16777216 addresses"),
        ("10.0.0/x", "not a network"),
        ("a b", "not a host"),
    ],
)
def test_invalid_hosts_are_rejected(tmp_path: Path, host: str, message: str) -> None:
    with pytest.raises(RaysysError, match=message):
        make_certificates(tmp_path, [host])
    assert list(tmp_path.iterdir()) == []
