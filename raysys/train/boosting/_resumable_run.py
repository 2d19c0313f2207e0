"""Boosting runs that outlive their driver: identity, checkpoint and result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysys.errors import DataError
from raysys.identity import RunIdentity
from raysys.train.boosting._boosted_model import BoostedModel

if TYPE_CHECKING:
    from raysys.storage import Storage


class ResumableBoost:
    """Files of a named run under the storage root, in `boosting/<name>`."""

    def __init__(self, name: str, storage: Storage) -> None:
        self._name, self._storage = name, storage
        self._folder = f"boosting/{name}"
        self.checkpoint = f"{self._folder}/checkpoint.ubj"

    def check_identity(self, identity: dict[str, Any]) -> None:
        """Write the run's identity, or compare it with that of an earlier call.

        Raises:
            DataError: The run was started with other settings or data.
        """
        RunIdentity(identity).claim(
            self._storage, self._folder, f"boosting {self._name!r}", error=DataError
        )

    def last_checkpoint(self) -> bytes | None:
        """The last packed booster."""
        return self._storage.read_bytes(self.checkpoint)

    def result(self) -> BoostedModel | None:
        """The stored model of a finished run."""
        path = f"{self._folder}/model"
        return BoostedModel.load(self._storage.fetch(path)) if self._storage.exists(path) else None

    def finish(self, model: BoostedModel) -> None:
        """Store the model and remove the checkpoint."""
        with self._storage.new_dir(f"{self._folder}/model") as folder:
            model.save(folder)
        if self._storage.exists(self.checkpoint):
            self._storage.remove(self.checkpoint)
