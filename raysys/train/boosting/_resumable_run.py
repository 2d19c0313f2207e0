"""Boosting runs that outlive their driver: what they are made of, their checkpoint, their end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raysys.errors import DataError
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
        """Note what the run is made of, or compare it with what an earlier call noted.

        Raises:
            DataError: It is made of something else.
        """
        path = f"{self._folder}/run.json"
        made_of = json.loads(json.dumps(made_of))
        noted = self._storage.read_bytes(path)
        if noted is None:
            self._storage.write_json(path, made_of)
            return
        before = json.loads(noted)
        changed = {
            key: f"{_short(before.get(key))}, now {_short(made_of.get(key))}"
            for key in sorted({*before, *made_of})
            if before.get(key) != made_of.get(key)
        }
        if changed:
            raise DataError(
                f"boosting {self._name!r} was begun with other settings or data: {changed}. Give "
                "it another name, or remove the old one: "
                f"storage.remove({self._folder!r})"
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


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]}..."
