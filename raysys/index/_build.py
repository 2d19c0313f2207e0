"""Building an index from rows, and starting one from its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from pydantic import ValidationError
from ray.exceptions import RayActorError, RayTaskError

from raysys import cluster
from raysys.console import say
from raysys.data import Table, described
from raysys.errors import DataError, ResourceError, StorageError
from raysys.index import _actor_names as _names
from raysys.index._hnsw_graph import memory_bytes
from raysys.index._persistence import Manifest
from raysys.index._query_router import PROBES
from raysys.index._types import (
    Settings,
    check_attributes,
    check_ids,
    shard_of,
    split_rows,
    vector_column,
    with_id,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray import ObjectRef
    from ray.actor import ActorHandle

    from raysys.index._persistence import Files

_ROWS_PER_SHARD = 50_000
_SAY_S = 10.0
_CPUS = 0.1  # an actor works when it is asked; a reserved CPU would starve tasks
_THREADS = 16


def build(
    name: str, rows: Table | pa.Table, files: Files, given: Mapping[str, Any], *,
    or_empty: bool = False,
) -> Manifest:  # fmt: skip
    """Check the rows, build the shards of an index and start all of its actors."""
    if not name or ":" in name:
        raise DataError(f"index name {name!r}: give one without `:`")
    blocks = [ray.put(rows)] if isinstance(rows, pa.Table) else list(rows.blocks())
    counts = [len(rows)] if isinstance(rows, pa.Table) else [meta.rows for meta in rows.metas()]
    total = sum(counts)
    if total == 0 and not or_empty:
        raise DataError("an index is built from at least one vector; the table has no rows")
    dim = _dim(rows.schema)
    usual = {"shards": _default_shards(total), "replicas": 2 if _nodes() > 1 else 1}
    wanted = {one: value for one, value in given.items() if value is not None}
    settings = _settings(name, {**usual, **wanted, "dim": dim})
    schema = pa.schema([field for field in rows.schema if field.name not in ("id", "vector")])
    schema = schema.remove_metadata()
    _check_memory(name, total, settings)
    version = files.last_version() + 1
    # Rows that cannot be used end it while an index of this name still answers. If there is none,
    # the actors start meanwhile.
    started = None if _names.of(name) else _start(name, files, settings, version)
    try:
        pieces = _split(blocks, settings, schema)
        if started is None:
            _names.end(name)
            version = files.last_version() + 1  # which the old one changed until it ended
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
        files.commit(manifest)
        # By a replica that has died since, too: it loads what was written.
        begin = [one.start.options(max_task_retries=-1) for one in (*replicas.values(), writer)]
        ray.get([one.remote() for one in begin])
    except BaseException:
        if started:
            _names.end(name)
        raise
    files.prune(settings.keep_snapshots)
    return manifest


def restore(
    name: str, files: Files, version: int | None, shards: int | None, replicas: int | None
) -> Manifest:
    """Start an index from its folder."""
    given = {"shards": shards, "replicas": replicas}
    changed = {one: value for one, value in given.items() if value is not None}
    # What cannot be restored is refused while an index of this name still answers.
    _settings(name, _snapshot(name, files, version).settings.model_dump() | changed)
    # Its log must not grow any more.
    _names.end(name)
    manifest = _snapshot(name, files, version)
    settings = manifest.settings
    wanted = _settings(name, settings.model_dump() | changed)
    last = files.last_version()
    upto = last if version is None else version
    if wanted.shards == settings.shards and upto == last:
        if wanted != settings:
            manifest = dataclasses.replace(manifest, settings=wanted)
            files.commit(manifest)
        try:
            holders, writer = _start(name, files, wanted, 0)
            ray.get([one.start.remote() for one in (*holders.values(), writer)])
        except RayActorError as error:
            _names.end(name)
            raise StorageError(f"index {name!r} cannot be restored: {error}") from error
        return manifest
    read = ray.remote(_read_part).options(name=f"restore:{name}", num_returns=2)
    parts = [read.remote(files, manifest, shard, upto) for shard in range(settings.shards)]
    try:
        rows = Table.from_blocks(parts)
    except RayTaskError as error:
        raise cluster.task_error_cause(error) from None
    return build(name, rows, files, wanted.model_dump(), or_empty=True)


def _read_part(files: Files, manifest: Manifest, shard: int, upto: int) -> tuple[Any, Any]:
    return described(files.read_rows(manifest, shard, upto))


def _snapshot(name: str, files: Files, version: int | None) -> Manifest:
    manifest = files.manifest(version)
    if manifest is None:
        there = [one.version for one in files.manifests()]
        raise StorageError(
            f"no snapshot {'' if version is None else version} of index {name!r} at "
            f"{files.storage.uri(files.path)}; there are: {there or 'none'}"
        )
    return manifest


def _settings(name: str, given: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        raise DataError(f"settings of index {name!r}: {error}") from error


def _dim(schema: pa.Schema) -> int:
    # Types are checked where the rows are; here the length alone is of interest.
    split_rows(schema.empty_table(), "ip")
    return schema.field("vector").type.list_size


def _default_shards(rows: int) -> int:
    cores = int(min(ray.cluster_resources().get("CPU", 1), _nodes() * (os.cpu_count() or 1)))
    return max(1, min(cores, rows // _ROWS_PER_SHARD))


def _nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _check_memory(name: str, rows: int, settings: Settings) -> None:
    needed = settings.replicas * memory_bytes(rows, settings)
    have = ray.cluster_resources().get("memory", float("inf"))
    print(
        f"index {name}: {rows:,} rows of {settings.dim} numbers, shards={settings.shards}, "
        f"replicas={settings.replicas}; needs about {needed / 2**20:,.0f} MiB beside its "
        "processes",
        flush=True,
    )
    if needed > have:
        raise ResourceError(
            f"index {name!r} needs about {needed / 2**30:.1f} GiB of memory ({rows} rows of "
            f"{settings.dim} numbers, m={settings.m}, {settings.replicas} replicas); the cluster "
            f"has {have / 2**30:.1f} GiB. Use fewer replicas, a smaller m, or more nodes"
        )


def _split(
    blocks: Sequence[ObjectRef], settings: Settings, schema: pa.Schema
) -> list[list[ObjectRef]]:
    """References to each shard's rows, in pieces, checked in tasks."""
    shards = settings.shards
    task = ray.remote(_split_block).options(name="split", num_returns=shards + 1)
    made = [task.remote(block, settings, schema) for block in blocks]
    check = ray.remote(_check_unique).options(name="check ids")
    try:
        ray.get(check.remote(*[one[shards] for one in made]))
    except RayTaskError as error:
        raise cluster.task_error_cause(error) from None
    return [[one[shard] for one in made] for shard in range(shards)]


def _split_block(block: pa.Table, settings: Settings, schema: pa.Schema) -> Any:
    """A block's rows for each shard, and its ids."""
    ids, vectors, attributes = split_rows(block, settings.metric)
    if vectors.shape[1] != settings.dim:
        raise DataError(f"vectors of {vectors.shape[1]} and of {settings.dim} numbers in one table")
    attributes = check_attributes(attributes, schema)
    table = with_id(ids, attributes).append_column("vector", vector_column(vectors))
    shards = shard_of(ids, settings.shards)
    pieces = [table.take(np.flatnonzero(shards == one)) for one in range(settings.shards)]
    return *pieces, ids


def _start(
    name: str, files: Files, settings: Settings, version: int
) -> tuple[dict[tuple[int, int], ActorHandle], ActorHandle]:
    """Start all actors of an index whose snapshot has a version, or will have it."""
    from raysys.index._replica import Replica
    from raysys.index._writer import Writer

    replica, writer = ray.remote(concurrency_groups={PROBES: 1})(Replica), ray.remote(Writer)
    place = name, files.storage, files.path, version
    options = {
        "namespace": cluster.NAMESPACE,
        "lifetime": "detached",
        "label_selector": cluster.ON_DEMAND_ONLY,
        "max_restarts": -1,
        "num_cpus": _CPUS,
        # Replicas of a shard on different nodes, where there are several.
        "scheduling_strategy": "SPREAD",
    }
    replicas = {
        (shard, number): replica.options(
            name=_names.replica_name(name, shard, number), max_concurrency=_THREADS, **options
        ).remote(*place, shard, number)
        for shard in range(settings.shards)
        for number in range(settings.replicas)
    }
    title = _names.writer_name(name)
    return replicas, writer.options(name=title, max_concurrency=1000, **options).remote(*place)


def _wait(
    name: str, handles: Sequence[ActorHandle], builds: Sequence[ObjectRef], total: int
) -> list[int]:
    """The shards' sizes, when they are built; says meanwhile how far they are."""
    started, left = time.monotonic(), list(builds)
    while left:
        _, left = ray.wait(left, num_returns=len(left), timeout=_SAY_S)
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
    check_ids(np.concatenate(ids))
