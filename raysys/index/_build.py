"""Build of an index from rows, and its start from a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayTaskError

from raysys import cluster
from raysys.console import say
from raysys.errors import DataError, ResourceError, StorageError
from raysys.imports import lazy_import
from raysys.index import _actor_names as _names
from raysys.index import _rows
from raysys.index._hnsw_graph import memory_bytes
from raysys.index._persistence import Manifest
from raysys.index._query_router import PROBES
from raysys.index._replica import ShardReplica
from raysys.index._settings import IndexSettings
from raysys.index._writer import IndexWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray import ObjectRef
    from ray.actor import ActorHandle

    from raysys.data import Table
    from raysys.index._persistence import IndexFiles

data = lazy_import("raysys.data")  # shards restart without it, in half the time

_ROWS_PER_SHARD = 50_000
_PROGRESS_S = 10.0
_CPUS = 0.1  # actors are mostly idle; a reserved CPU would starve tasks
_THREADS = 16


def build(
    name: str, rows: Table | pa.Table, files: IndexFiles, options: Mapping[str, Any], *,
    or_empty: bool = False,
) -> Manifest:  # fmt: skip
    """Validate the rows, build the shards of an index and start all of its actors."""
    if not name or ":" in name:
        raise DataError(f"invalid index name {name!r}: it must not be empty or contain `:`")
    blocks = [ray.put(rows)] if isinstance(rows, pa.Table) else list(rows.blocks())
    counts = [len(rows)] if isinstance(rows, pa.Table) else [meta.rows for meta in rows.metas()]
    total = sum(counts)
    if total == 0 and not or_empty:
        raise DataError("an index requires at least one vector; the table has no rows")
    # The rows are validated where they are; only the dimension is needed now.
    dim = _rows.split_rows(rows.schema.empty_table(), "ip")[1].shape[1]
    settings = _settings(name, _default_partition(total), {**options, "dim": dim})
    schema = pa.schema([field for field in rows.schema if field.name not in ("id", "vector")])
    schema = schema.remove_metadata()
    _check_memory(name, total, settings)
    version = files.last_version() + 1
    # Invalid rows raise while an index of this name still answers. If none runs, the actors start
    # meanwhile.
    started = None if _names.of(name) else _start(name, files, settings, version)
    try:
        pieces = _split(blocks, settings, schema)
        if started is None:
            _names.end(name)
            version = files.last_version() + 1  # the old one changed it until it ended
            started = _start(name, files, settings, version)
        replicas, writer = started
        firsts = [replicas[shard, 0] for shard in range(settings.shards)]
        builds = [
            first.build.options(max_task_retries=3).remote(settings, schema, pieces[shard])
            for shard, first in enumerate(firsts)
        ]
        sizes = _wait(name, firsts, builds, total)
        versions = (version,) * settings.shards
        folder = f"{version:020d}"
        manifest = Manifest(folder, version, versions, sum(sizes), settings, schema)
        files.start_log()
        files.commit(manifest)
        # A replica that has died since is restarted, and loads the snapshot.
        starts = [
            actor.start.options(max_task_retries=-1) for actor in (*replicas.values(), writer)
        ]
        ray.get([start.remote() for start in starts])
    except BaseException:
        if started:
            _names.end(name)
        raise
    files.prune(settings.keep_snapshots)
    return manifest


def restore(
    name: str, files: IndexFiles, version: int | None, shards: int | None, replicas: int | None
) -> Manifest:
    """Start an index from its folder."""
    changes = {"shards": shards, "replicas": replicas}
    # Invalid arguments are refused while an index of this name still answers.
    _settings(name, _snapshot(name, files, version).settings.model_dump(), changes)
    if version is None:
        files.log_versions()  # which an index that runs can still write anew
    # From here on its log must not grow.
    _names.end(name)
    manifest = _snapshot(name, files, version)
    if version is not None:
        files.start_log()  # without the changes since, if they are lost
    files.drop_cut_off_record()
    settings = _settings(name, manifest.settings.model_dump(), changes)
    last = files.last_version()
    upto = last if version is None else version
    if settings.shards == manifest.settings.shards and upto == last:
        if settings != manifest.settings:
            manifest = dataclasses.replace(manifest, settings=settings)
            files.commit(manifest)
        try:
            actors, writer = _start(name, files, settings, 0)
            ray.get([actor.start.remote() for actor in (*actors.values(), writer)])
        except (RayActorError, RayTaskError) as error:
            _names.end(name)
            cause = cluster.task_error_cause(error)
            raise StorageError(f"cannot restore index {name!r}: {cause}") from None
        return manifest
    read = ray.remote(_read_part).options(name=f"restore:{name}", num_returns=2)
    shard_numbers = range(manifest.settings.shards)
    parts = [read.remote(files, manifest, shard, upto) for shard in shard_numbers]
    try:
        rows = data.Table.from_blocks(parts)
    except RayTaskError as error:
        raise cluster.task_error_cause(error) from None
    return build(name, rows, files, settings.model_dump(), or_empty=True)


def _read_part(files: IndexFiles, manifest: Manifest, shard: int, upto: int) -> tuple[Any, Any]:
    return data.described(files.read_rows(manifest, shard, upto))


def _snapshot(name: str, files: IndexFiles, version: int | None) -> Manifest:
    manifest = files.manifest(version)
    if manifest is None:
        versions = [item.version for item in files.manifests()]
        raise StorageError(
            f"no snapshot {'' if version is None else version} of index {name!r} at {files.uri}; "
            f"available: {versions or 'none'}"
        )
    return manifest


def _settings(name: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> IndexSettings:
    """Settings from options; None is the default."""
    chosen = {option: value for option, value in options.items() if value is not None}
    return IndexSettings(**{**defaults, **chosen})


def _default_partition(rows: int) -> dict[str, int]:
    nodes = sum(node["Alive"] for node in ray.nodes())
    cores = int(min(ray.cluster_resources().get("CPU", 1), nodes * (os.cpu_count() or 1)))
    shards = max(1, min(cores, rows // _ROWS_PER_SHARD))
    return {"shards": shards, "replicas": 2 if nodes > 1 else 1}


def _check_memory(name: str, rows: int, settings: IndexSettings) -> None:
    needed = settings.replicas * memory_bytes(rows, settings)
    available = ray.cluster_resources().get("memory", float("inf"))
    say(
        f"index {name}: {rows:,} rows of {settings.dim} numbers, shards={settings.shards}, "
        f"replicas={settings.replicas}; requires about {needed / 2**20:,.0f} MiB beside its "
        "processes"
    )
    if needed > available:
        raise ResourceError(
            f"index {name!r} requires about {needed / 2**30:.1f} GiB of memory ({rows} rows of "
            f"{settings.dim} numbers, M={settings.M}, {settings.replicas} replicas); the cluster "
            f"has {available / 2**30:.1f} GiB. Use fewer replicas, a smaller M, or more nodes"
        )


def _split(
    blocks: Sequence[ObjectRef], settings: IndexSettings, schema: pa.Schema
) -> list[list[ObjectRef]]:
    """References to each shard's rows, in pieces, validated in tasks."""
    shards = settings.shards
    task = ray.remote(_split_block).options(name="split", num_returns=shards + 1)
    parts = [task.remote(block, settings, schema) for block in blocks]
    check = ray.remote(_check_unique).options(name="check ids")
    try:
        ray.get(check.remote(*[part[shards] for part in parts]))
    except RayTaskError as error:
        raise cluster.task_error_cause(error) from None
    return [[part[shard] for part in parts] for shard in range(shards)]


def _split_block(block: pa.Table, settings: IndexSettings, schema: pa.Schema) -> Any:
    """A block's rows for each shard, and its ids."""
    ids, vectors, attributes = _rows.split_rows(block, settings.metric)
    if vectors.shape[1] != settings.dim:
        raise DataError(
            f"the table has vectors of dimension {vectors.shape[1]} and of {settings.dim}: give one"
        )
    attributes = _rows.check_attributes(attributes, schema)
    table = _rows.with_id(ids, attributes).append_column("vector", _rows.vector_column(vectors))
    shards = _rows.shard_of(ids, settings.shards)
    pieces = [table.take(np.flatnonzero(shards == shard)) for shard in range(settings.shards)]
    return *pieces, ids


def _start(
    name: str, files: IndexFiles, settings: IndexSettings, version: int
) -> tuple[dict[tuple[int, int], ActorHandle], ActorHandle]:
    """Start all actors of an index; its snapshot has the version, or will have it."""
    replica = ray.remote(concurrency_groups={PROBES: 1})(ShardReplica)
    writer = ray.remote(IndexWriter)
    location = name, files.storage, files.path, version
    options = {
        "namespace": cluster.NAMESPACE,
        "lifetime": "detached",
        "label_selector": cluster.ON_DEMAND_ONLY,
        "max_restarts": -1,
        "num_cpus": _CPUS,
        # Replicas of a shard on different nodes, if the cluster has several.
        "scheduling_strategy": "SPREAD",
    }
    replicas = {
        (shard, number): replica.options(
            name=_names.replica_name(name, shard, number), max_concurrency=_THREADS, **options
        ).remote(*location, shard, number)
        for shard in range(settings.shards)
        for number in range(settings.replicas)
    }
    title = _names.writer_name(name)
    _names.add_user(name)
    return replicas, writer.options(name=title, max_concurrency=1000, **options).remote(*location)


def _wait(
    name: str, handles: Sequence[ActorHandle], builds: Sequence[ObjectRef], total: int
) -> list[int]:
    """The shards' sizes, after they are built; prints the progress meanwhile."""
    started, left = time.monotonic(), list(builds)
    while left:
        _, left = ray.wait(left, num_returns=len(left), timeout=_PROGRESS_S)
        if left:
            with contextlib.suppress(RayActorError):  # it is restarted, and builds again
                done = sum(ray.get([handle.progress.remote() for handle in handles]))
                seconds = time.monotonic() - started
                say(f"index {name}: {done:,} of {total:,} rows after {seconds:.0f} s")
    try:
        return ray.get(list(builds))
    except RayTaskError as error:
        raise cluster.task_error_cause(error) from None


def _check_unique(*ids: np.ndarray) -> None:
    _rows.check_ids(np.concatenate(ids))
