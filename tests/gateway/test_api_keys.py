"""Keys as they are kept, without an application."""

import json
import time
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
    kept = storage.read_bytes("serve/keys.json") or b""
    assert ann.sha256.encode() in kept
    assert secret.encode() not in kept


def test_keys_of_before_there_was_expiry_are_read(storage: Storage) -> None:
    old = {"name": "ann", "sha256": "0" * 64, "rate_per_s": 1, "max_body_bytes": 1}
    storage.write_json("serve/keys.json", [old])
    assert read_keys(storage)[0].expires is None


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
    kept = json.loads((tmp_path / "serve/keys.json").read_text())
    assert abs(kept[0]["expires"] - time.time() - 30 * 86400) < 60
    kept.append({**kept[0], "name": "old", "expires": 1_700_000_000})
    (tmp_path / "serve/keys.json").write_text(json.dumps(kept))
    ann, bob, old = runner.invoke(cli.app, ["key", "list"]).stdout.splitlines()
    assert ann.startswith("ann: 5 requests/s, ")
    assert ", expires 20" in ann
    assert bob.endswith("never expires")
    assert ", EXPIRED 2023-11-1" in old
    shown = runner.invoke(cli.app, ["audit", "--action", "key"]).stdout
    assert "key.add ann by " in shown
    later = runner.invoke(cli.app, ["audit", "--since", "2100-01-01"]).stdout
    assert later.startswith("no entries since 2100-01-01")
