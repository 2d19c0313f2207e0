"""A head with a token of its own, and behind it an application that wants API keys."""

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from raysys.gateway import create_key, revoke_key
from raysys.storage import Storage
from tests.heads import BIN, head_of, place_for_a_head
from tests.ports import free_ports

_DEPLOY = """
import sys
import numpy as np
from raysys import cluster, serve

path, port, grpc_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def noted(x: np.ndarray) -> np.ndarray:
    with open(path, "a") as file:
        file.write("ran\\n")
    return x

cluster.connect()
graph = serve.Graph(
    inputs={"x": serve.Array("float32", ())}, nodes={"noted": noted}, output="noted"
)
serve.deploy("guarded", graph, protected=True, cpus_per_replica=0.1,
             gateway=serve.GatewayOptions(port=port, grpc_port=grpc_port))
"""


@dataclass
class Target:
    """What is attacked.

    Attributes:
        env: The environment of its owner.
        token: The cluster's.
        key: A serving key that is good.
        bad_keys: Serving keys that are not, by what is wrong with them.
        pid: Of the head; its children are the cluster.
        ran: A file with a line for each batch that the application has run.
    """

    env: dict[str, str]
    folder: Path
    storage: Storage
    token: str
    pid: int
    address: str
    dashboard: str
    ray_folder: Path
    port: int
    grpc_port: int
    ran: Path
    key: str = ""
    bad_keys: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        return len(self.ran.read_text().splitlines())

    def intruders(self) -> dict[str, str | None]:
        """What those present as a token who have none."""
        return {"no token": None, "a wrong token": "0" * 64, "a serving key": self.key,
                "an expired serving key": self.bad_keys["expired"]}  # fmt: skip

    def listening(self) -> dict[int, tuple[str, str]]:
        """Every port of the head's processes: an address and the process's command."""
        head = psutil.Process(self.pid)
        found = {}
        for process in [head, *head.children(recursive=True)]:
            try:
                command = " ".join(process.cmdline())
                ports = process.net_connections("inet")
            except psutil.Error:
                continue
            for port in ports:
                if port.status == psutil.CONN_LISTEN:
                    ip = port.laddr.ip.removeprefix("::ffff:")
                    anywhere = ip in ("::", "0.0.0.0")
                    found[port.laddr.port] = ("127.0.0.1" if anywhere else ip, command)
        return found

    def jobs(self) -> list[str]:
        """Ids of all jobs, as the owner sees them."""
        request = ["-s", "-H", f"Authorization: Bearer {self.token}", f"{self.dashboard}/api/jobs/"]
        said = subprocess.run(["curl", *request], capture_output=True, check=True).stdout
        return sorted(job["submission_id"] or job["job_id"] for job in json.loads(said))


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("security")
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    work = folder / "work"
    work.mkdir()
    (work / "deploy.py").write_text(_DEPLOY)
    port, grpc_port = free_ports(2)
    ran = folder / "ran"
    submit = [BIN / "raysys", "submit", "deploy.py", "--", str(ran), str(port), str(grpc_port)]
    with place_for_a_head(folder / "storage", RAY_AUTH_TOKEN_PATH=str(folder / "token")) as env:
        env.pop("RAY_AUTH_TOKEN", None)
        done = subprocess.run(
            submit, cwd=work, env=env, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        storage = Storage(folder / "storage")
        head = head_of(env)
        assert head
        made = Target(env, folder, storage, token, head.pid, head.address, head.dashboard_url,
                      Path(head.folder), port, grpc_port, ran)  # fmt: skip
        made.bad_keys["expired"] = create_key(storage, "expired", expires_s=1)
        made.bad_keys["revoked"] = create_key(storage, "revoked")
        made.key = create_key(storage, "good")
        revoke_key(storage, "revoked")
        _wait_for(port, made.key)
        yield made


def _wait_for(port: int, key: str) -> None:
    """Until the gateway knows the keys: it reads them every second."""
    deadline = time.monotonic() + 30
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"X-API-Key: {key}",
               f"http://127.0.0.1:{port}/guarded/docs"]  # fmt: skip
    while subprocess.run(command, capture_output=True, check=False).stdout != b"200":
        assert time.monotonic() < deadline
        time.sleep(0.1)
