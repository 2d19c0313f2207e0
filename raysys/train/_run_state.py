"""Files of a training run under the storage root, besides its checkpoints."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.errors import StorageError, TrainError
from raysys.storage import read_record

if TYPE_CHECKING:
    from raysys.storage import Storage


@dataclass(frozen=True)
class RunState:
    """The files of a run, below `training/<name>`."""

    storage: Storage
    name: str

    @property
    def folder(self) -> str:
        """Storage path of the run's folder."""
        return f"training/{self.name}"

    def read(self, file: str) -> dict[str, Any] | None:
        """`plan`, `progress`, `result` or `done`; None before it is written."""
        folder = self.storage.uri(self.folder)
        remedy = f"remove it; if {self.name!r} is refused then, remove {folder} and begin anew"
        return read_record(self.storage, f"{self.folder}/{file}.json", remedy=remedy)

    def write(self, file: str, value: dict[str, Any]) -> None:
        """Write one of the files atomically.

        Raises:
            StorageError: The storage root cannot be written to.
        """
        path = f"{self.folder}/{file}.json"
        try:
            self.storage.write_json(path, value)
        except OSError as error:
            raise StorageError(
                f"cannot write {self.storage.uri(path)}: {error}. Free space or grant access; "
                "the same call resumes from the newest checkpoint"
            ) from error

    def write_rows(self, file: str, rows: pa.Table) -> None:
        """Write a few rows atomically."""
        with self.storage.new_file(f"{self.folder}/{file}.parquet") as parquet:
            pq.write_table(rows, parquet)

    def rows(self, file: str) -> pa.Table | None:
        """Rows of `write_rows`."""
        content = self.storage.read_bytes(f"{self.folder}/{file}.parquet")
        return None if content is None else pq.read_table(pa.BufferReader(content))

    def remove(self, file: str) -> None:
        """Remove one of the files, if it exists."""
        if self.storage.exists(f"{self.folder}/{file}.json"):
            self.storage.remove(f"{self.folder}/{file}.json")

    def write_failure(self, submission: str, rank: int, error: TrainError) -> None:
        """Store an error of a worker that would recur, for the driver of this submission."""
        self.write(f"failure-{submission}/{rank}", {
            "message": str(error), "step": error.step, "layer": error.layer,
        })  # fmt: skip

    def failures(self, submission: str) -> int:
        """Number of workers of this submission that stored an error."""
        return len(self.storage.names(f"{self.folder}/failure-{submission}"))

    def failure(self, submission: str) -> TrainError | None:
        """The error that a worker of this submission stored, one of them if several did."""
        for name in self.storage.names(f"{self.folder}/failure-{submission}"):
            failure = self.read(f"failure-{submission}/{name.removesuffix('.json')}")
            if failure is not None:
                return TrainError(failure["message"], step=failure["step"], layer=failure["layer"])
        return None

    def clean_up(self) -> None:
        """Remove what only a resumed run needs, and the remains of killed writers."""
        for name in self.storage.names(self.folder):
            if name in ("ray", "result.json") or name.startswith("failure-"):
                self.storage.remove(f"{self.folder}/{name}")
        if self.storage.is_local:
            for path in [*Path(self.storage.uri(self.folder)).rglob(".*")]:
                if path.suffix == ".partial":
                    path.unlink(missing_ok=True)
                elif path.suffix == ".old":
                    shutil.rmtree(path, ignore_errors=True)
