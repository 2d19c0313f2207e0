"""Keys as they are kept, without an application."""

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys import audit, cli
from raysys.errors import RaysysError, StorageError
from raysys.gateway import create_key, read_keys, revoke_key
from raysys.storage import Storage


def test_expiry_is_kept_beside_the_hash(storage: Storage) -> None:
    before = int(time.time())
    secret = create_key(storage, "ann", expires_s=60)
    create_key(storage, "bob")
    ann, bob = read_keys(storage)
    assert ann.expires is not None
    assert before + 60 <= ann.expires <= time.time() + 60
    assert bob.expires is None
    kept = storage.read_bytes("serve/keys/ann.json") or b""
    assert ann.sha256.encode() in kept
    assert secret.encode() not in kept


def test_a_key_made_while_another_is_revoked_stays_and_the_other_is_gone(
    storage: Storage,
) -> None:
    create_key(storage, "key-0")
    with ThreadPoolExecutor() as threads:
        for number in range(20):
            together = threading.Barrier(2)

            def revoke(name: str, together: threading.Barrier = together) -> None:
                together.wait()
                revoke_key(storage, name)

            revoking = threads.submit(revoke, f"key-{number}")
            together.wait()
            secret = create_key(storage, f"key-{number + 1}")
            revoking.result()
            (key,) = read_keys(storage)
            assert key.name == f"key-{number + 1}"
            assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()


def test_of_two_keys_of_one_name_made_at_once_one_is_refused(storage: Storage) -> None:
    with ThreadPoolExecutor() as threads:
        for number in range(10):
            name, together = f"key-{number}", threading.Barrier(2)

            def create(name: str = name, together: threading.Barrier = together) -> str | None:
                together.wait()
                try:
                    return create_key(storage, name)
                except RaysysError:
                    return None

            secrets = [making.result() for making in [threads.submit(create) for _ in range(2)]]
            (secret,) = filter(None, secrets)
            digests = {key.name: key.sha256 for key in read_keys(storage)}
            assert digests[name] == hashlib.sha256(secret.encode()).hexdigest()


@pytest.mark.parametrize("name", ["../keys/ann", ".ann", "", "a" * 65])
def test_a_name_that_is_no_file_of_its_own_is_refused(storage: Storage, name: str) -> None:
    create_key(storage, "ann")
    with pytest.raises(RaysysError, match="use up to 64 letters"):
        create_key(storage, name)
    with pytest.raises(RaysysError, match="unknown key"):
        revoke_key(storage, name)
    assert [key.name for key in read_keys(storage)] == ["ann"]


@pytest.mark.parametrize("expires_s", [0, -5, 0.5])
def test_a_key_that_would_have_expired_is_refused(storage: Storage, expires_s: float) -> None:
    with pytest.raises(RaysysError, match="give one second or more"):
        create_key(storage, "ann", expires_s=expires_s)
    assert read_keys(storage) == []


def test_making_and_revoking_leave_lines_without_the_secret(storage: Storage) -> None:
    secret = create_key(storage, "ann", rate_per_s=7)
    revoke_key(storage, "ann")
    assert [(line.action, line.subject) for line in audit.read(storage)] == [
        ("key.add", "ann"),
        ("key.revoke", "ann"),
    ]
    written = "".join(path.read_text() for path in Path(storage.root).rglob("audit/*/*.json"))
    assert secret not in written
    assert json.dumps(7) in written


def test_no_key_is_made_that_cannot_be_written_down(storage: Storage) -> None:
    create_key(storage, "ann")
    lines = Path(storage.uri("audit"))
    lines.rename(lines.with_name("elsewhere"))
    lines.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"key\.add 'bob' refused"):
        create_key(storage, "bob")
    with pytest.raises(StorageError, match=r"key\.revoke 'ann' refused"):
        revoke_key(storage, "ann")
    assert [key.name for key in read_keys(storage)] == ["ann"]


def test_the_command_line_shows_when_keys_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path))
    runner = CliRunner()
    for name, flags in (("ann", ["--expires", "30d"]), ("bob", [])):
        made = runner.invoke(cli.app, ["key", "add", name, "--rate", "5", *flags])
        assert made.stdout.startswith("rs_")
    wrong = runner.invoke(cli.app, ["key", "add", "eve", "--expires", "soon"])
    assert "'soon' is not a duration" in str(wrong.exception)
    kept = json.loads((tmp_path / "serve/keys/ann.json").read_text())
    assert abs(kept["expires"] - time.time() - 30 * 86400) < 60
    expired = {**kept, "name": "old", "expires": 1_700_000_000}
    (tmp_path / "serve/keys/old.json").write_text(json.dumps(expired))
    ann, bob, old = runner.invoke(cli.app, ["key", "list"]).stdout.splitlines()
    assert ann.startswith("ann: serve all applications, 5 requests/s, ")
    assert ", expires 20" in ann
    assert bob.endswith("never expires")
    assert ", EXPIRED 2023-11-1" in old
    shown = runner.invoke(cli.app, ["audit", "--action", "key"]).stdout
    assert "key.add ann by " in shown
    later = runner.invoke(cli.app, ["audit", "--since", "2100-01-01"]).stdout
    assert later.startswith("no entries since 2100-01-01")
