"""What an index leaves on the storage root: snapshots, and a log of the changes since."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.errors import StorageError
from raysys.index import _change_record as _record
from raysys.index._hnsw_graph import HnswGraph
from raysys.index._shard import Capture, Shard
from raysys.index._slot_rows import NEVER, Rows
from raysys.index._types import Settings, vector_column

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from raysys.index._change_record import Batch
    from raysys.storage import Storage

_GRAPH, _ROWS, _STATE, _MANIFEST = "graph.hnsw", "rows.arrow", "state.json", "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What makes a snapshot complete; written last.

    Attributes:
        folder: Its name below `snapshots`.
        version: Of the index that it restores, with the log of up to then.
        shard_versions: Of each shard as it was written: the log goes on from there.
        rows: Of all shards.
        settings: Of the index.
        schema: Of the attributes.
    """

    folder: str
    version: int
    shard_versions: tuple[int, ...]
    rows: int
    settings: Settings
    schema: pa.Schema

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "version": self.version,
            "shard_versions": list(self.shard_versions),
            "rows": self.rows,
            "settings": self.settings.model_dump(),
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "columns": [f"{field.name} {field.type}" for field in self.schema],
        }

    @classmethod
    def from_json(cls, folder: str, data: bytes) -> Manifest:
        """As it is read."""
        found = json.loads(data)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(found["schema"])))
        return cls(
            folder, found["version"], tuple(found["shard_versions"]), found["rows"],
            Settings(**found["settings"]), schema,
        )  # fmt: skip


class Files:
    """The folder of an index.

    `snapshots/<version>/manifest.json` with `<shard>/` beside it, and `log/<version>`: one file
    for each batch of changes, written whole and flushed to disk before anybody sees the change.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self.storage, self.path = storage, path

    # --- the log ---

    def write_record(self, version: int, record: bytes) -> None:
        """Make a batch of changes durable.

        Raises:
            FileExistsError: Another writer has written that version.
        """
        self.storage.create(f"{self.path}/log/{version:020d}", record)

    def record(self, version: int) -> bytes | None:
        """A batch of changes, if the log has it."""
        return self.storage.read_bytes(f"{self.path}/log/{version:020d}")

    def log_versions(self) -> list[int]:
        """Versions in the log, ascending."""
        return [int(name) for name in self.storage.names(f"{self.path}/log")]

    def changes(self, after: int, upto: int | None = None) -> Iterator[tuple[int, Batch]]:
        """The changes of the log that follow a version."""
        for version in self.log_versions():
            if version > after and (upto is None or version <= upto):
                record = self.record(version)
                if record is None:
                    raise StorageError(f"the log lost version {version} while it was read")
                yield version, _record.decode(record)

    # --- snapshots ---

    def manifests(self) -> list[Manifest]:
        """Complete snapshots, oldest first."""
        found = []
        for folder in self.storage.names(f"{self.path}/snapshots"):
            data = self.storage.read_bytes(f"{self.path}/snapshots/{folder}/{_MANIFEST}")
            if data is not None:
                found.append(Manifest.from_json(folder, data))
        return found

    def manifest(self, version: int | None = None) -> Manifest | None:
        """The snapshot of a version, the last by default, or None."""
        found = [one for one in self.manifests() if version in (None, one.version)]
        return found[-1] if found else None

    def last_version(self) -> int:
        """The highest that stands here, 0 if none does."""
        found = [one.version for one in self.manifests()] + self.log_versions()[-1:]
        folders = [int(name) for name in self.storage.names(f"{self.path}/snapshots")]
        return max([0, *found, *folders])

    def commit(self, manifest: Manifest) -> None:
        """Make a snapshot whose shards are written complete, or change its settings."""
        path = f"{self.path}/snapshots/{manifest.folder}/{_MANIFEST}"
        self.storage.write_json(path, manifest.to_json())

    def prune(self, keep: int) -> None:
        """Remove all snapshots but the last ones, and the log that only the others need."""
        manifests = self.manifests()
        kept = manifests[-keep:]
        if not kept:
            return
        last = kept[-1].folder
        for folder in self.storage.names(f"{self.path}/snapshots"):
            if folder < last and folder not in {one.folder for one in kept}:
                self.storage.remove(f"{self.path}/snapshots/{folder}")
        needed = min(min(one.shard_versions) for one in kept)
        for version in self.log_versions():
            if version <= needed:
                self.storage.remove(f"{self.path}/log/{version:020d}")

    # --- shards ---

    def write_shard(self, folder: str, shard: int, state: Capture) -> None:
        """Write one shard of a snapshot."""
        with self.storage.new_dir(f"{self.path}/snapshots/{folder}/{shard}") as local:
            table = state.table.append_column("vector", vector_column(state.vectors))
            ended = np.zeros(len(table), bool)
            ended[state.deleted] = True
            # Read by its place: an attribute may have the same name.
            table = table.append_column("ended", pa.array(ended))
            options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
            with (
                pa.OSFile(str(local / _ROWS), "wb") as sink,
                pa.ipc.new_file(sink, table.schema, options=options) as writer,
            ):
                writer.write_table(table, max_chunksize=65_536)
            state.graph.save(local / _GRAPH)
            late = state.ended_since().tolist()
            facts = {"version": state.version, "merged": state.merged, "late": late}
            (local / _STATE).write_text(json.dumps(facts))

    def read_shard(self, manifest: Manifest, shard: int) -> Shard:
        """A shard of a snapshot, without the log."""
        folder = self.storage.fetch(f"{self.path}/snapshots/{manifest.folder}/{shard}")
        facts = json.loads((folder / _STATE).read_text())
        settings, merged, version = manifest.settings, facts["merged"], facts["version"]
        rows, ended = _read_rows(folder / _ROWS, manifest, version)
        late = np.array(facts["late"], np.int64)
        graph = HnswGraph.load(settings, folder / _GRAPH, ended, late)
        return Shard(settings, rows, graph, merged, version)

    def read_rows(self, manifest: Manifest, shard: int, upto: int) -> pa.Table:
        """The living rows of a shard of a snapshot and of the log up to a version."""
        folder = self.storage.fetch(f"{self.path}/snapshots/{manifest.folder}/{shard}")
        version, shards = manifest.shard_versions[shard], manifest.settings.shards
        rows, _ = _read_rows(folder / _ROWS, manifest, version)
        for number, batch in self.changes(version, upto):
            if number != version + 1:
                break
            rows.change(batch.of_shard(shard, shards), number)
            version = number
        # A version beyond the log may be that of a snapshot that was never finished.
        reachable = max([manifest.version, *self.log_versions()])
        if version < min(upto, reachable):
            raise StorageError(
                f"the log at {self.storage.uri(self.path)}/log lacks version {version + 1}: "
                "restore another snapshot"
            )
        alive = rows.alive()
        column = vector_column(rows.vectors[alive])
        return rows.table.take(alive).add_column(1, "vector", column)


def _read_rows(file: Path, manifest: Manifest, version: int) -> tuple[Rows, np.ndarray]:
    """Rows of a shard, and the slots of those that have ended."""
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        rows = Rows(manifest.settings.dim, manifest.schema, int(sum(map(len, batches)) * 1.1))
        for batch in batches:
            ids, *columns, flat, marks = batch.columns
            attributes = pa.Table.from_arrays(columns, schema=manifest.schema)
            vectors = flat.flatten().to_numpy().reshape(len(batch), manifest.settings.dim)
            ended = marks.to_numpy(zero_copy_only=False)
            died = np.where(ended, version, NEVER)
            # Taken out of the mapped file, which may be removed.
            attributes = attributes.take(np.arange(len(batch)))
            rows.append(ids.to_numpy(), vectors, attributes, version, died)
    rows.index_ids()
    return rows, np.flatnonzero(rows.died[: rows.length] != NEVER)
