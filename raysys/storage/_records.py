"""Records, JSON objects that raysys keeps under a storage root, read back."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from raysys.errors import StorageError
from raysys.secrets import shown

if TYPE_CHECKING:
    from raysys.storage._storage import Storage

Record = TypeVar("Record")

log = logging.getLogger("raysys.storage")

_READERS = 16  # an object store takes 20 ms for each file


def read_record(
    storage: Storage,
    path: str,
    make: Callable[[Any], Record] = dict,  # type: ignore[assignment]
    *,
    remedy: str = "restore it from a backup, or remove it",
) -> Record | None:
    """The record in a file, or None if it does not exist.

    Args:
        storage: The storage root.
        path: Storage path of the file.
        make: Function of the JSON's value; a dict of it by default.
        remedy: The way out of a damaged file.

    Raises:
        StorageError: The file is damaged: no JSON, or none that `make` takes.
    """
    data = storage.read_bytes(path)
    if data is None:
        return None
    try:
        return make(json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{error or type(error).__name__}".partition("\n")[0]
        raise StorageError(
            f"{shown(storage.uri(path))} is damaged, {len(data)} bytes ({reason}): {remedy}"
        ) from error


def read_records(
    storage: Storage,
    paths: Iterable[str],
    make: Callable[[Any], Record] = dict,  # type: ignore[assignment]
) -> list[Record]:
    """The records in files; a damaged one is left out with one warning, as is one removed since."""

    def read(path: str) -> Record | None:
        try:
            return read_record(storage, path, make)
        except StorageError as error:
            _warn_once(str(error))
            return None

    with ThreadPoolExecutor(_READERS) as threads:
        return [record for record in threads.map(read, paths) if record is not None]


@functools.lru_cache(1024)
def _warn_once(message: str) -> None:
    log.warning("left out: %s", message)
