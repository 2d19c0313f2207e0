"""Identity of a resumable run: the settings and data that decide its results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError
from raysys.storage import read_record

if TYPE_CHECKING:
    from raysys.storage import Storage


class RunIdentity:
    """Facts that must be equal for a call to resume an earlier one, kept in the run's folder.

    Example:
        >>> RunIdentity({"depth": 3}).changes({"depth": 4})
        ['depth 4, now 3']
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Take facts as JSON has them; other values count by their `repr`."""
        self.facts: dict[str, Any] = json.loads(json.dumps(facts, default=repr))

    def __repr__(self) -> str:
        return f"RunIdentity({self.facts})"

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """Facts that differ from those of an earlier call, each with both values."""
        return [
            f"{key} {_short(before.get(key))}, now {_short(self.facts.get(key))}"
            for key in sorted({*before, *self.facts})
            if before.get(key) != self.facts.get(key)
        ]

    def claim(
        self,
        storage: Storage,
        folder: str,
        run: str,
        *,
        remedy: str = "",
        error: type[RaysysError] = RaysysError,
    ) -> None:
        """Write the identity into a folder, or compare it with the one that is there.

        Args:
            storage: Storage of the run.
            folder: Storage path of the run; empty for the root.
            run: The run in an error's words, such as "search 'depth'".
            remedy: A way out, beside another name or removing the folder.
            error: Class of the error.

        Raises:
            RaysysError: The run was started with other facts.
        """
        path = _path(folder)
        if not storage.exists(path):
            with contextlib.suppress(FileExistsError):  # by another call at the same time
                storage.create(path, json.dumps(self.facts, indent=2).encode())
        written = read_record(storage, path, remedy=f"remove {storage.uri(folder)} to begin anew")
        if changes := self.changes(written or {}):
            raise error(
                f"{run} was started with other settings or data: {'; '.join(changes)}. Give this "
                f"one another name, use the earlier settings, or remove {storage.uri(folder)}"
                f"{remedy and f'; {remedy}'}"
            )

    def write(self, storage: Storage, folder: str) -> None:
        """Write the identity into a folder, over any other."""
        storage.write_json(_path(folder), self.facts)


def _path(folder: str) -> str:
    return f"{folder}/identity.json".lstrip("/")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]}..."
