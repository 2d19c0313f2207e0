"""Heads of a user on this machine, found by their processes; nothing is started."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raysys.cluster import Head, _local_head, local_head, start_local, stop_local
from raysys.errors import ResourceError, StorageError
from raysys.ray_internals import local_processes
from raysys.storage import Storage


def command(folder: Path) -> list[str]:
    return ["python", "ray", "start", "--head", "--block", "--port=6400", f"--temp-dir={folder}",
            "--dashboard-port=8300"]  # fmt: skip


def test_a_head_is_found_by_its_folder_whatever_the_storage_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    mine, others = tmp_path / f"raysys-{os.getuid()}" / "6400", tmp_path / "raysys-77" / "6400"
    processes = [(3, command(others)), (4, command(Path("/tmp/ray"))), (5, ["bash"])]
    monkeypatch.setattr(local_processes, "commands", lambda: iter(processes))
    assert local_head() is None
    assert stop_local(Storage(tmp_path)) is None
    processes.append((6, command(mine)))
    head = local_head()
    assert head
    assert (head.pid, head.address, head.dashboard_url, head.folder) == (
        6, "127.0.0.1:6400", "http://127.0.0.1:8300", str(mine)
    )  # fmt: skip


def test_nothing_starts_without_a_usable_root_or_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"it is a file. Set RAYSYS_STORAGE"):
        start_local(Storage(tmp_path / "file"))
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 40}")
    with pytest.raises(ResourceError, match=r"too long for Ray's sockets.*RAY_TMPDIR"):
        start_local(Storage(tmp_path / "storage"))


def test_a_process_knows_its_ancestor_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_processes.own_gcs_address() == ""
    raylet = ["/x/raylet", "--gcs-address=10.0.0.7:1"]
    real = local_processes.arguments
    parent = os.getppid()
    monkeypatch.setattr(
        local_processes, "arguments", lambda pid: raylet if pid == parent else real(pid)
    )
    assert local_processes.own_gcs_address() == "10.0.0.7:1"


def test_two_processes_that_start_a_head_at_once_share_it(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, starts = list[Head](), list[int]()

    def start(_: Storage, cpus: int, tls: bool) -> Head:
        starts.append(cpus)
        time.sleep(0.2)
        heads.append(Head(1, "127.0.0.1:1", "http://127.0.0.1:2"))
        return heads[0]

    monkeypatch.setattr(_local_head, "_folder_of_heads", lambda: tmp_path)
    monkeypatch.setattr(_local_head, "_MAX_FOLDER_CHARACTERS", 4096)
    monkeypatch.setattr(_local_head, "local_head", lambda: heads[0] if heads else None)
    monkeypatch.setattr(_local_head, "_start", start)
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda cpus: start_local(storage, cpus=cpus), (1, 2)))
    assert both == [heads[0]] * 2
    assert len(starts) == 1
