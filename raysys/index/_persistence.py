"""Snapshots of an index and the log of later changes, on the storage root."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.errors import StorageError
from raysys.index import _change_record as _record
from raysys.index import _checksums
from raysys.index._checksums import CutOffError, DamagedError
from raysys.index._hnsw_graph import HnswGraph
from raysys.index._rows import vector_column, vector_matrix, with_vector
from raysys.index._settings import IndexSettings
from raysys.index._shard import Shard, ShardCapture
from raysys.index._slot_rows import NEVER, SlotRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from raysys.index._change_record import ChangeBatch
    from raysys.storage import Storage

_log = logging.getLogger("raysys.index")
_GRAPH, _ROWS, _STATE, _MANIFEST = "graph.hnsw", "rows.arrow", "state.json", "manifest.json"
_REBUILD = "no snapshot is before it, build the index again from its rows"
_START = "START"  # an empty file in the log, without which the folder has been lost


@dataclasses.dataclass(frozen=True)
class IndexSnapshot:
    """A snapshot for `VectorIndex.restore`, identified by its version."""

    version: int
    rows: int
    shards: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Description of a snapshot, written last: it makes the snapshot complete."""

    folder: str  # its name below `snapshots`
    version: int  # of the index, restored with the log up to it
    shard_versions: tuple[int, ...]  # of each shard as written; its log resumes after it
    rows: int  # of all shards
    settings: IndexSettings
    schema: pa.Schema  # of the attributes

    def to_json(self) -> dict[str, Any]:
        """The contents of the manifest's file."""
        return {
            "version": self.version,
            "shard_versions": list(self.shard_versions),
            "rows": self.rows,
            "settings": self.settings.model_dump(),
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "columns": [f"{field.name} {field.type}" for field in self.schema],
        }

    @classmethod
    def from_json(cls, folder: str, facts: Mapping[str, Any]) -> Manifest:
        """The manifest of a file's contents."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(facts["schema"])))
        return cls(
            folder, facts["version"], tuple(facts["shard_versions"]), facts["rows"],
            IndexSettings(**facts["settings"]), schema,
        )  # fmt: skip


class IndexFiles:
    """The folder of an index.

    `snapshots/<version>/manifest.json` with `<shard>/` beside it, and `log/<version>`: a file
    per batch of changes, written atomically and flushed to disk before the change is visible. All
    have checksums: a `StorageError` names the file that was damaged, and the way out.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self.storage, self.path = storage, path

    @property
    def uri(self) -> str:
        """Address of the folder, for messages."""
        return self.storage.uri(self.path)

    # --- log ---

    def start_log(self) -> None:
        """Make the log's folder, or a new one where all changes so far are in a snapshot."""
        with contextlib.suppress(FileExistsError):
            self.storage.create(f"{self.path}/log/{_START}", b"")

    def write_record(self, version: int, record: bytes) -> None:
        """Make a batch of changes durable; a `FileExistsError` if another writer has done so."""
        if not self.storage.exists(f"{self.path}/log/{_START}"):
            raise self._lost_log()
        self.storage.create(self._log_path(version), _checksums.sealed(record))

    def record(self, version: int) -> bytes | None:
        """A batch of changes, or None if the log lacks it."""
        path = self._log_path(version)
        content = self.storage.read_bytes(path)
        try:
            return None if content is None else _checksums.unsealed(content)
        except DamagedError as error:
            earlier = [item.version for item in self.manifests() if item.version < version]
            remedy = f"go back by VectorIndex.restore(..., version={max(earlier, default=0)})"
            raise StorageError(
                f"{self.storage.uri(path)} is damaged ({error}): {remedy if earlier else _REBUILD}"
            ) from error

    def drop_cut_off_record(self) -> None:
        """Remove the log's last record if its end was never written, nor was it acknowledged.

        No local file system leaves one unless it loses what was flushed to disk.
        """
        for version in self.log_versions()[-1:]:
            path = self._log_path(version)
            try:
                _checksums.unsealed(self.storage.read_bytes(path) or b"")
            except CutOffError:
                _log.warning("removing %s, whose end was never written", self.storage.uri(path))
                self.storage.remove(path)
            except DamagedError:
                pass  # whoever reads it says so

    def log_versions(self) -> list[int]:
        """Versions in the log, ascending; a `StorageError` if its folder was lost."""
        names = self._log_names()
        if _START not in names and self.manifests():
            raise self._lost_log()
        return [int(name) for name in names if name != _START]

    def changes(self, after: int, upto: int | None = None) -> Iterator[tuple[int, ChangeBatch]]:
        """The changes of the log after a version."""
        for version in self.log_versions():
            if version > after and (upto is None or version <= upto):
                record = self.record(version)
                if record is None:
                    raise StorageError(f"the log lost version {version} while it was read")
                yield version, _record.decode(record)

    def _log_path(self, version: int) -> str:
        return f"{self.path}/log/{version:020d}"

    def _log_names(self) -> list[str]:
        return self.storage.names(f"{self.path}/log")

    def _lost_log(self) -> StorageError:
        version = max((manifest.version for manifest in self.manifests()), default=0)
        return StorageError(
            f"the log of the index, {self.uri}/log, is missing, and with it every change after "
            f"version {version}: bring the folder back; or call `snapshot` if the index still "
            f"runs; or do without them, by VectorIndex.restore(..., version={version})"
        )

    # --- snapshots ---

    def manifests(self) -> list[Manifest]:
        """Manifests of the complete snapshots, oldest first."""
        manifests = []
        for folder in self._folders():
            path = f"{self.path}/snapshots/{folder}/{_MANIFEST}"
            content = self.storage.read_bytes(path)
            if content is not None:
                manifests.append(Manifest.from_json(folder, self._facts(path, folder, content)))
        return manifests

    def manifest(self, version: int | None = None) -> Manifest | None:
        """The manifest of a version, the last by default, or None."""
        manifests = [item for item in self.manifests() if version in (None, item.version)]
        return manifests[-1] if manifests else None

    def last_version(self) -> int:
        """The highest version in the folder, 0 if it is empty."""
        versions = [manifest.version for manifest in self.manifests()]
        logged = [int(name) for name in self._log_names() if name != _START]
        return max([0, *versions, *logged[-1:], *map(int, self._folders())])

    def commit(self, manifest: Manifest) -> None:
        """Complete a snapshot after its shards are written, or change its settings."""
        path = f"{self.path}/snapshots/{manifest.folder}/{_MANIFEST}"
        self.storage.write_json(path, _checksums.sealed_facts(manifest.to_json()))

    def prune(self, keep: int) -> None:
        """Remove all snapshots but the last ones, and the log before them."""
        manifests = self.manifests()[-keep:]
        if not manifests:
            return
        retained = {manifest.folder for manifest in manifests}
        for folder in self._folders():
            if folder < manifests[-1].folder and folder not in retained:
                self.storage.remove(f"{self.path}/snapshots/{folder}")
        oldest = min(min(manifest.shard_versions) for manifest in manifests)
        for version in self.log_versions():
            if version <= oldest:
                self.storage.remove(self._log_path(version))

    def _folders(self) -> list[str]:
        return self.storage.names(f"{self.path}/snapshots")

    # --- shards ---

    def write_shard(self, folder: str, shard: int, state: ShardCapture) -> None:
        """Write a shard of a snapshot."""
        with self.storage.new_dir(f"{self.path}/snapshots/{folder}/{shard}") as local:
            table = state.table.append_column("vector", vector_column(state.vectors))
            is_deleted = np.zeros(len(table), bool)
            is_deleted[state.deleted] = True
            # Read by position: an attribute may have the same name.
            table = table.append_column("ended", pa.array(is_deleted))
            options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
            with (
                pa.OSFile(str(local / _ROWS), "wb") as sink,
                pa.ipc.new_file(sink, table.schema, options=options) as writer,
            ):
                writer.write_table(table, max_chunksize=65_536)
            state.graph.save(local / _GRAPH)
            checksums = {name: _checksums.file_checksum(local / name) for name in (_ROWS, _GRAPH)}
            facts = {"version": state.version, "merged": state.merged, "checksums": checksums}
            (local / _STATE).write_text(json.dumps(_checksums.sealed_facts(facts)))

    def read_shard(self, manifest: Manifest, shard: int) -> Shard:
        """A shard of a snapshot, without the log."""
        folder, facts = self._fetch(manifest, shard, _ROWS, _GRAPH)
        settings, merged, version = manifest.settings, facts["merged"], facts["version"]
        rows, deleted = _read_rows(folder / _ROWS, manifest, version)
        try:
            graph = HnswGraph.load(settings, folder / _GRAPH, rows.vectors[: rows.length], deleted)
        except RuntimeError as error:  # of an earlier format
            _log.warning("building the graph of %d rows again: %s", merged, error)
            graph = HnswGraph(settings, rows.vectors[:merged])
            graph.add(np.setdiff1d(np.arange(merged), deleted), rows.vectors)
        return Shard(settings, rows, graph, merged, version)

    def read_rows(self, manifest: Manifest, shard: int, upto: int) -> pa.Table:
        """The living rows of a shard at a version, from a snapshot and the log."""
        folder, _ = self._fetch(manifest, shard, _ROWS)
        version, shards = manifest.shard_versions[shard], manifest.settings.shards
        rows, _ = _read_rows(folder / _ROWS, manifest, version)
        for number, batch in self.changes(version, upto):
            if number != version + 1:
                break
            rows.change(batch.of_shard(shard, shards), number)
            version = number
        # A version beyond the log may be of an unfinished snapshot.
        reachable = max([manifest.version, *self.log_versions()])
        if version < min(upto, reachable):
            raise StorageError(
                f"the log at {self.uri}/log lacks version {version + 1}: restore another snapshot"
            )
        alive = rows.alive()
        return with_vector(rows.table.take(alive), rows.vectors[alive])

    def _fetch(self, manifest: Manifest, shard: int, *names: str) -> tuple[Path, dict[str, Any]]:
        """A local folder of a shard of a snapshot, with these files undamaged, and its facts."""
        path = f"{self.path}/snapshots/{manifest.folder}/{shard}"
        folder = self.storage.fetch(path)
        content = (folder / _STATE).read_bytes() if (folder / _STATE).exists() else b""
        facts = self._facts(f"{path}/{_STATE}", manifest.folder, content)
        for name in names:
            try:
                if _checksums.file_checksum(folder / name) != facts["checksums"][name]:
                    raise DamagedError("its checksum differs")
            except FileNotFoundError:
                error = DamagedError("it is missing")
                raise self._damage(f"{path}/{name}", manifest.folder, error) from None
            except DamagedError as error:
                raise self._damage(f"{path}/{name}", manifest.folder, error) from error
        return folder, facts

    def _facts(self, path: str, folder: str, content: bytes) -> dict[str, Any]:
        """The facts of a file of a snapshot's folder."""
        try:
            return _checksums.unsealed_facts(content)
        except DamagedError as error:
            raise self._damage(path, folder, error) from error

    def _damage(self, path: str, folder: str, error: Exception) -> StorageError:
        snapshots = f"{self.path}/snapshots"
        is_first = not any(
            name < folder and self.storage.exists(f"{snapshots}/{name}/{_MANIFEST}")
            for name in self._folders()
        )
        uri = self.storage.uri(f"{snapshots}/{folder}")
        remedy = (
            f"move {uri} away, and VectorIndex.restore starts from the snapshot before it and the "
            "log since"
        )
        return StorageError(
            f"{self.storage.uri(path)} is damaged ({error}): {_REBUILD if is_first else remedy}"
        )


def _read_rows(file: Path, manifest: Manifest, version: int) -> tuple[SlotRows, np.ndarray]:
    """Rows of a shard, and the slots of the deleted ones."""
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        rows = SlotRows(manifest.settings.dim, manifest.schema, int(sum(map(len, batches)) * 1.1))
        for batch in batches:
            ids, *columns, vectors, is_deleted = batch.columns
            attributes = pa.Table.from_arrays(columns, schema=manifest.schema)
            died = np.where(is_deleted.to_numpy(zero_copy_only=False), version, NEVER)
            # Copied out of the mapped file, which may be removed.
            attributes = attributes.take(np.arange(len(batch)))
            rows.append(ids.to_numpy(), vector_matrix(vectors), attributes, version, died)
    rows.index_ids()
    return rows, np.flatnonzero(rows.died[: rows.length] != NEVER)
