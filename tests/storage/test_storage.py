import re
import socket
import time
from pathlib import Path

import pyarrow.fs
import pytest

from raysys.errors import StorageError
from raysys.storage import Storage


@pytest.fixture
def remote(tmp_path: Path) -> Storage:
    return Storage(f"fsspec+memory:/{tmp_path}")


def _write(storage: Storage, path: str, **files: str) -> None:
    with storage.new_dir(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def _fail_to_write(storage: Storage, path: str) -> None:
    def fill(folder: Path) -> None:
        (folder / "weights").write_text("new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), storage.new_dir(path) as folder:
        fill(folder)


def _content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_new_dir_shows_nothing_until_it_is_complete(storage: Storage, tmp_path: Path) -> None:
    with storage.new_dir("models/m1") as folder:
        (folder / "weights").write_text("0123")
        assert not storage.exists("models/m1")
    assert _content(storage.fetch("models/m1")) == {"weights": "0123"}
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m1"]


def test_new_dir_leaves_nothing_after_an_error(storage: Storage, tmp_path: Path) -> None:
    _fail_to_write(storage, "models/m1")
    assert list((tmp_path / "models").iterdir()) == []


def test_new_dir_keeps_the_old_version_after_an_error(storage: Storage, tmp_path: Path) -> None:
    _write(storage, "m1", weights="old")
    _fail_to_write(storage, "m1")
    assert _content(storage.fetch("m1")) == {"weights": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["m1"]


def test_new_dir_keeps_the_old_version_when_the_last_rename_fails(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(storage, "m1", weights="old")
    rename = Path.rename

    def refuse_partial(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_partial)
    with pytest.raises(OSError, match="no space left"):
        _write(storage, "m1", weights="new")
    assert _content(storage.fetch("m1")) == {"weights": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["m1"]


def test_new_dir_replaces_an_old_version_atomically(storage: Storage, tmp_path: Path) -> None:
    _write(storage, "m1", weights="old", optimizer="old")
    _write(storage, "m1", weights="new")
    assert _content(storage.fetch("m1")) == {"weights": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["m1"]


def test_write_bytes_replaces_and_leaves_nothing_else(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("runs/a.json", b"old")
    storage.write_bytes("runs/a.json", b"new")
    assert storage.fetch("runs/a.json").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a.json"]


def test_write_bytes_keeps_the_old_version_after_an_error(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes("a.json", b"old")

    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:1])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="no space left"):
        storage.write_bytes("a.json", b"new")
    assert storage.fetch("a.json").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_create_never_replaces(storage: Storage, tmp_path: Path) -> None:
    storage.create("log/1", b"one")
    with pytest.raises(FileExistsError):
        storage.create("log/1", b"two")
    assert storage.read_bytes("log/1") == b"one"
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["1"]


def test_create_below_a_file_raises_not_a_directory(storage: Storage) -> None:
    storage.write_bytes("log", b"")
    with pytest.raises(NotADirectoryError):
        storage.create("log/1", b"one")


def test_create_that_cannot_be_flushed_leaves_nothing(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        if path.is_dir():
            raise OSError("the folder cannot be flushed")

    monkeypatch.setattr("raysys.storage._storage._flush", fail)
    with pytest.raises(OSError, match="cannot be flushed"):
        storage.create("log/1", b"one")
    assert list((tmp_path / "log").iterdir()) == []


@pytest.mark.parametrize("kind", ["storage", "remote"])
def test_fetch_of_a_missing_artefact_names_the_path(
    kind: str, request: pytest.FixtureRequest
) -> None:
    storage: Storage = request.getfixturevalue(kind)
    with pytest.raises(StorageError, match=re.escape(storage.uri("models/m1"))):
        storage.fetch("models/m1")


def test_a_file_uri_is_a_local_root(tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    storage.write_bytes("a", b"1")
    assert storage.fetch("a") == tmp_path / "a"


def test_the_root_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path))
    assert Storage().root == str(tmp_path)


@pytest.mark.parametrize("name", ["m1", "test set", "100%"])
def test_a_remote_root_gives_back_files_and_folders(remote: Storage, name: str) -> None:
    _write(remote, f"models/{name}", weights="old", optimizer="old")
    _write(remote, f"models/{name}", weights="new")
    remote.write_bytes(f"runs/{name}.json", b"{}")
    folder = remote.fetch(f"models/{name}")
    assert (folder / "weights").read_text() == "new"
    assert not (folder / "optimizer").exists()
    assert remote.fetch(f"runs/{name}.json").read_bytes() == b"{}"


@pytest.mark.parametrize("root", ["mock:///bucket", "mock:///bucket?region=eu"])
def test_a_remote_path_may_have_characters_that_are_invalid_in_a_uri(root: str) -> None:
    assert not Storage(root).exists("runs/test set: 100%.json")


def test_a_remote_folder_with_an_interrupted_upload_is_refused(
    remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(remote, "m1", weights="old")
    copy = pyarrow.fs.copy_files

    def copy_then_break(*args: object, **options: object) -> None:
        copy(*args, **options)
        raise OSError("connection lost")

    monkeypatch.setattr(pyarrow.fs, "copy_files", copy_then_break)
    with pytest.raises(OSError, match="connection lost"):
        _write(remote, "m1", weights="new")
    assert remote.exists("m1/weights")
    with pytest.raises(StorageError, match=r"no complete artefact at fsspec.*/m1:"):
        remote.fetch("m1")


def test_a_remote_folder_stays_when_filling_its_next_version_fails(remote: Storage) -> None:
    _write(remote, "m1", weights="old")
    _fail_to_write(remote, "m1")
    assert (remote.fetch("m1") / "weights").read_text() == "old"


@pytest.mark.parametrize("kind", ["storage", "remote"])
def test_names_are_those_of_complete_files_and_folders_until_they_are_removed(
    kind: str, request: pytest.FixtureRequest
) -> None:
    storage: Storage = request.getfixturevalue(kind)
    assert storage.names("log") == []
    storage.write_bytes("log/2", b"b")
    storage.write_bytes("log/10", b"a")
    _write(storage, "log/folder", weights="0")
    assert storage.names("log") == ["10", "2", "folder"]
    storage.remove("log/2")
    storage.remove("log/folder")
    assert storage.read_bytes("log/2") is None
    assert not storage.exists("log/folder")
    assert storage.read_bytes("log/10") == b"a"


def test_a_folder_that_is_being_written_has_no_name_yet(storage: Storage) -> None:
    with storage.new_dir("models/m1"):
        assert storage.names("models") == []
    assert storage.names("models") == ["m1"]
    storage.remove("models/m1")
    storage.remove("models/never")
    assert storage.names("models") == []


def test_staged_shows_nothing_until_it_is_complete(storage: Storage, tmp_path: Path) -> None:
    _write(storage, "out", old="old")
    with storage.staged("out") as folder:
        folder.write_bytes("key=1/part", b"new")
        assert _content(storage.fetch("out")) == {"old": "old"}
    assert (storage.fetch("out") / "key=1" / "part").read_bytes() == b"new"
    assert storage.names("out") == ["key=1"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_staged_removes_the_partial_files_of_a_killed_writer(storage: Storage) -> None:
    with storage.staged("out") as folder:
        folder.write_bytes("below/part", b"whole")
        left = Path(folder.root) / "below" / ".part.0123.partial"
        left.write_bytes(b"half")
    assert [path.name for path in (storage.fetch("out") / "below").iterdir()] == ["part"]


def _stop_staging(storage: Storage) -> None:
    def fill(folder: Storage) -> None:
        folder.write_bytes("part", b"new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), storage.staged("out") as folder:
        fill(folder)


def test_staged_keeps_the_old_version_after_an_error(storage: Storage, tmp_path: Path) -> None:
    _write(storage, "out", part="old")
    _stop_staging(storage)
    assert _content(storage.fetch("out")) == {"part": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_staged_on_an_object_store_is_complete_or_refused(remote: Storage) -> None:
    with remote.staged("out") as folder:
        folder.write_bytes("part", b"old")
        assert not remote.exists("out")
    assert _content(remote.fetch("out"))["part"] == "old"
    _stop_staging(remote)
    with pytest.raises(StorageError, match="no complete artefact"):
        remote.fetch("out")


@pytest.mark.parametrize("where", ["storage", "remote"])
def test_new_file_appears_when_it_is_complete(where: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(where)
    with storage.new_file("below/a.txt") as local:
        local.write_text("one")
        assert not storage.exists("below/a.txt")

    def fill(local: Path) -> None:
        local.write_text("two")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), storage.new_file("below/a.txt") as local:
        fill(local)
    assert storage.read_bytes("below/a.txt") == b"one"
    assert storage.names("below") == ["a.txt"]


def test_a_root_that_can_be_used_passes_its_check(storage: Storage, remote: Storage) -> None:
    storage.check()
    assert storage.names("") == []
    remote.check()


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("file", "it is a file"),
        ("file/below", ".*/file is a file"),
        ("/proc/raysys", "No such file"),
    ],
)
def test_a_root_that_is_not_a_writable_folder_is_refused(
    tmp_path: Path, root: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"{root} cannot be used: {reason}.* RAYSYS_STORAGE"):
        Storage(tmp_path / root).check()


def test_a_bucket_that_does_not_answer_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        bucket = Storage(f"s3://b/p?endpoint_override=127.0.0.1:{port}&scheme=http")
        started = time.monotonic()
        with pytest.raises(StorageError, match="no answer within 2 s"):
            bucket.check(timeout_s=2)
        assert time.monotonic() - started < 4


def test_a_file_that_is_removed_while_it_is_read_is_none(
    storage: Storage, remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "exists", lambda *_: True)
    assert storage.read_bytes("gone") is None
    assert remote.read_bytes("gone") is None


@pytest.mark.parametrize("later_s", [0, 2 * 86_400])
def test_leftovers_of_killed_writers_go_after_a_day(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later_s: int
) -> None:
    folder = tmp_path / "models"
    for name in (".a.1.partial", ".b.2.old"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_text("half")
    (folder / ".c.3.partial").write_text("half")
    (folder / "kept.partial").write_text("an artefact")
    now = time.time()
    monkeypatch.setattr("raysys.storage._storage.time.time", lambda: now + later_s)
    storage.write_bytes("models/new", b"1")
    left = {path.name for path in folder.iterdir()}
    leftovers = {".a.1.partial", ".b.2.old", ".c.3.partial"}
    assert left == {"new", "kept.partial"} | (set() if later_s else leftovers)
    for name in sorted(left):
        storage.remove(f"models/{name}")
    assert storage.names("models") == []


# --- what is unpickled ---


def test_a_signed_file_is_read_back_by_its_own_cluster_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "one")
    assert storage.read_signed("value") is None
    storage.write_signed("value", b"content")
    assert storage.read_signed("value") == b"content"
    storage.write_bytes("planted", b"content")
    signed = storage.read_bytes("value")
    assert signed is not None
    storage.write_bytes("cut", signed[:-1])
    for path in ("planted", "cut"):
        with pytest.raises(StorageError, match=rf"{path} is damaged, or was not written by this"):
            storage.read_signed(path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(StorageError, match="set RAYSYS_SIGNING_KEY"):
        storage.read_signed("value")
    monkeypatch.setenv("RAYSYS_SIGNING_KEY", "shared")
    storage.write_signed("value", b"content")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "one")
    assert storage.read_signed("value") == b"content"


@pytest.mark.parametrize("path", ["../escape", "a/../../x", "/etc/passwd", "a/.."])
def test_paths_stay_below_the_root(storage: Storage, path: str) -> None:
    for use in (
        lambda: storage.write_bytes(path, b"x"),
        lambda: storage.read_bytes(path),
        lambda: storage.remove(path),
        lambda: storage.new_dir(path).__enter__(),
        lambda: storage.create(path, b"x"),
        lambda: storage.fetch(path),
    ):
        with pytest.raises(StorageError, match="leaves the root"):
            use()
    assert not (Path(storage.root).parent / "escape").exists()


def test_sizes_of_files(storage: Storage) -> None:
    assert storage.sizes("none") == {}
    storage.write_bytes("a/x", b"123")
    storage.write_bytes("a/b/y", b"1")
    assert storage.sizes("a") == {"x": 3}
