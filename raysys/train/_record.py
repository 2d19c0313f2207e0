"""What a training run keeps under the storage root besides its checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import TrainError

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
        """`plan`, `progress` or `done`; None if it has not been written."""
        found = self.storage.read_bytes(f"{self.folder}/{what}.json")
        return None if found is None else json.loads(found)

    def write(self, what: str, value: dict[str, Any]) -> None:
        """Write one of them whole."""
        self.storage.write_json(f"{self.folder}/{what}.json", value)

    def write_failure(self, submission: str, error: TrainError) -> None:
        """Keep an error that would come again, for the driver of this submission."""
        self.write("failure", {
            "submission": submission, "message": str(error), "step": error.step,
            "layer": error.layer,
        })  # fmt: skip

    def failure(self, submission: str) -> TrainError | None:
        """The error that a worker of this submission left."""
        found = self.read("failure")
        if not found or found["submission"] != submission:
            return None
        return TrainError(found["message"], step=found["step"], layer=found["layer"])
