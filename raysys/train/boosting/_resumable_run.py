"""Boosting runs that outlive their driver: what they are made of, their checkpoint, their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysys.errors import DataError
from raysys.identity import RunIdentity
from raysys.train.boosting._boosted import Boosted

if TYPE_CHECKING:
    from raysys.storage import Storage


class NamedRun:
    """Files of a run under the storage root, in `boosting/<name>`."""

    def __init__(self, name: str, storage: Storage) -> None:
        self._name, self._storage = name, storage
        self._folder = f"boosting/{name}"
        self.checkpoint = f"{self._folder}/checkpoint.ubj"

    def claim(self, made_of: dict[str, Any]) -> None:
        """Write the run's identity, or compare it with that of an earlier call.

        Raises:
            DataError: The run was started with other settings or data.
        """
        RunIdentity(made_of).claim(
            self._storage, self._folder, f"boosting {self._name!r}", error=DataError
        )

    def start(self) -> bytes | None:
        """The last checkpoint."""
        return self._storage.read_bytes(self.checkpoint)

    def result(self) -> Boosted | None:
        """What the run ended with, if it has."""
        path = f"{self._folder}/model"
        return Boosted.load(self._storage.fetch(path)) if self._storage.exists(path) else None

    def finish(self, boosted: Boosted) -> None:
        """Keep the end; checkpoints are needed no more."""
        with self._storage.new_dir(f"{self._folder}/model") as folder:
            boosted.save(folder)
        if self._storage.exists(self.checkpoint):
            self._storage.remove(self.checkpoint)
