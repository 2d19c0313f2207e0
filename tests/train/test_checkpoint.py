"""A checkpoint is complete or ignored, also when writers are killed or the disk is full."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from raysys.errors import StorageError
from raysys.storage import Storage
from raysys.train._checkpoint import CheckpointWriter, TrainingProgress, complete, newest, opened
from tests.train.writers import State

FOLDER = "run/checkpoints"


def save(storage: Storage, step: int, attempt: str, rank: int, world: int) -> CheckpointWriter:
    checkpoints = CheckpointWriter(storage, "run", attempt=attempt, rank=rank, world=world)
    checkpoints.save(State(rank, step), TrainingProgress(step))  # type: ignore[arg-type]
    checkpoints.wait()
    return checkpoints


def test_writers_killed_at_any_moment_leave_a_complete_newest_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.writers", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    written = json.loads(process.stdout)
    assert len(set(written["seen"])) > 5, "hardly a checkpoint was written between the kills"
    # Nothing else is left, complete or not.
    assert Storage(tmp_path).names(FOLDER) == [written["last"]]


def test_a_part_of_a_dead_group_does_not_complete_a_checkpoint_of_the_next(
    storage: Storage,
) -> None:
    save(storage, 4, "a", 0, 1)
    save(storage, 5, "b", 0, 2)  # of two workers, one of them killed
    save(storage, 5, "c", 1, 2)
    assert newest(storage, "run") == "0000000004-a"
    # Their parts are removed once there are two newer checkpoints.
    save(storage, 6, "d", 0, 1)
    save(storage, 7, "d", 0, 1)
    assert storage.names(FOLDER) == ["0000000006-d", "0000000007-d"]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A full disk, as the call that writes sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_at_once_and_keeps_the_previous_checkpoint(
    storage: Storage,
) -> None:
    checkpoints = save(storage, 1, "a", 0, 1)
    with no_file_above(10_000):
        checkpoints.save(State(0, 2), TrainingProgress(2))  # type: ignore[arg-type]
        with pytest.raises(StorageError, match=r"cannot write a checkpoint to .*run/checkpoints: "):
            checkpoints.wait()
    # The next call reports it, not the end of the run.
    with pytest.raises(StorageError, match="resumes from the previous checkpoint"):
        checkpoints.save(State(0, 3), TrainingProgress(3))  # type: ignore[arg-type]
    assert newest(storage, "run") == "0000000001-a"
    with opened(storage, "run", "0000000001-a") as saved:
        assert torch.equal(saved.read("0-0")["value"], torch.full((5000,), 1.0))
    assert not list(Path(storage.root).rglob("*.partial"))


def test_a_damaged_file_is_named_with_the_folder_to_remove(storage: Storage) -> None:
    save(storage, 1, "a", 0, 1)
    file = Path(storage.uri(f"{FOLDER}/0000000001-a/0-of-1.pt"))
    file.write_bytes(file.read_bytes()[:-2000])
    with (
        pytest.raises(StorageError, match=r"cannot read .*0-of-1.pt: .*Remove .*0000000001-a to"),
        opened(storage, "run", "0000000001-a"),
    ):
        pass
    assert complete(storage, FOLDER) == ["0000000001-a"]
