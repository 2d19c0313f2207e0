"""What a training run keeps under the storage root besides its checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.errors import StorageError, TrainError

if TYPE_CHECKING:
    from raysys.storage import Storage


@dataclass(frozen=True)
class Record:
    """The files of a run, below `training/<name>`."""

    storage: Storage
    name: str

    @property
    def folder(self) -> str:
        """Storage path of the run's folder."""
        return f"training/{self.name}"

    def read(self, what: str) -> dict[str, Any] | None:
        """`plan`, `progress`, `result` or `done`; None if it has not been written."""
        found = self.storage.read_bytes(f"{self.folder}/{what}.json")
        return None if found is None else json.loads(found)

    def write(self, what: str, value: dict[str, Any]) -> None:
        """Write one of them whole.

        Raises:
            StorageError: The storage root does not take it.
        """
        path = f"{self.folder}/{what}.json"
        try:
            self.storage.write_json(path, value)
        except OSError as error:
            raise StorageError(
                f"{self.storage.uri(path)} cannot be written: {error}. Make room or give access; "
                "the same call goes on from the newest checkpoint"
            ) from error

    def write_rows(self, what: str, rows: pa.Table) -> None:
        """Write a few rows whole."""
        with self.storage.new_file(f"{self.folder}/{what}.parquet") as file:
            pq.write_table(rows, file)

    def rows(self, what: str) -> pa.Table | None:
        """What `write_rows` wrote."""
        found = self.storage.read_bytes(f"{self.folder}/{what}.parquet")
        return None if found is None else pq.read_table(pa.BufferReader(found))

    def remove(self, what: str) -> None:
        """Remove one of them, if it is there."""
        if self.storage.exists(f"{self.folder}/{what}.json"):
            self.storage.remove(f"{self.folder}/{what}.json")

    def write_failure(self, submission: str, error: TrainError) -> None:
        """Keep an error that would come again, for the driver of this submission."""
        self.write(f"failure-{submission}", {
            "message": str(error), "step": error.step, "layer": error.layer,
        })  # fmt: skip

    def failure(self, submission: str) -> TrainError | None:
        """The error that a worker of this submission left."""
        found = self.read(f"failure-{submission}")
        if found is None:
            return None
        return TrainError(found["message"], step=found["step"], layer=found["layer"])

    def tidy(self) -> None:
        """Remove what only a run that may go on needs, and what killed writers left."""
        for name in self.storage.names(self.folder):
            if name in ("ray", "result.json") or name.startswith("failure-"):
                self.storage.remove(f"{self.folder}/{name}")
        if self.storage.is_local:
            for left in [*Path(self.storage.uri(self.folder)).rglob(".*")]:
                if left.suffix == ".partial":
                    left.unlink(missing_ok=True)
                elif left.suffix == ".old":
                    shutil.rmtree(left, ignore_errors=True)
