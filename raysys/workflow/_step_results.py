"""What a step gives, kept under the storage root: Tables by their blocks, all else pickled."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import ray
from ray import ObjectRef, get

from raysys.data import Table
from raysys.errors import StorageError

if TYPE_CHECKING:
    from raysys.storage import Storage

_VALUE = "value.pickle"


@dataclass(frozen=True)
class Result:
    """A step's result as it is kept.

    Attributes:
        path: Its folder, as a storage path.
        content: Digest of the value: equal for equal values, whatever code made them.
    """

    path: str
    content: str


def keep(storage: Storage, path: str, value: Any) -> Result:
    """Write a value.

    Tables in it, at any depth, are written as files, one a block, by tasks; objects of Ray's
    store (`ray.put`) are written by this process. They come back as Tables and references.

    Args:
        storage: Where.
        path: Of the folder, which appears when it is whole.
        value: What pickle takes.
    """
    contents: list[str] = []
    known: dict[int, tuple[Any, tuple[str, int]]] = {}  # the object too, so that its id stays its

    with storage.staged(path) as folder:

        class Pickler(cloudpickle.Pickler):
            def persistent_id(self, found: Any) -> Any:
                if not isinstance(found, Table | ObjectRef):
                    return None
                if id(found) in known:
                    return known[id(found)][1]
                number = len(contents)
                if isinstance(found, Table):
                    contents.append(found.write_blocks(folder, f"table-{number}"))
                else:
                    data = cloudpickle.dumps(get(found))
                    folder.write_bytes(f"object-{number}", data)
                    contents.append(hashlib.blake2b(data, digest_size=16).hexdigest())
                named = "table" if isinstance(found, Table) else "object", number
                known[id(found)] = found, named
                return named

        buffer = io.BytesIO()
        Pickler(buffer, protocol=5).dump(value)
        folder.write_bytes(_VALUE, buffer.getvalue())
    said = hashlib.blake2b(buffer.getvalue(), digest_size=16)
    said.update(repr(contents).encode())
    return Result(path, said.hexdigest())


def load(storage: Storage, result: Result) -> Any:
    """Read a value back; its Tables are read by the tasks that need their rows.

    Raises:
        StorageError: It is not there.
    """
    data = storage.read_bytes(f"{result.path}/{_VALUE}")
    if data is None:
        raise StorageError(
            f"no step's result at {storage.uri(result.path)}: it was removed. Run the job again "
            "with `--from` that step"
        )
    at, known = result.path, dict[int, Any]()

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, found: Any) -> Any:
            kind, number = found
            if number not in known and kind == "table":
                known[number] = Table.read_blocks(storage, f"{at}/table-{number}")
            elif number not in known:
                held = storage.read_bytes(f"{at}/object-{number}")
                assert held is not None
                known[number] = ray.put(pickle.loads(held))
            return known[number]

    return Unpickler(io.BytesIO(data)).load()
