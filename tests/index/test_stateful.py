"""Random sequences of all operations of an index, against a dict."""

import contextlib
import shutil
import tempfile
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raysys.index import vector_table
from raysys.index._change_record import ChangeBatch, decode, encode
from raysys.index._persistence import IndexFiles, Manifest
from raysys.index._query_result import merge
from raysys.index._rows import shard_of, split_rows
from raysys.index._shard import Shard
from raysys.storage import Storage
from tests.index._exact import FILTERS, SCHEMA, Model, batch_of, exact_settings, queries_of

IDS = st.integers(0, 40)
SOME = st.lists(IDS, max_size=8, unique=True)
SEEDS = st.integers(0, 1000)


class Index(RuleBasedStateMachine):
    """Shards in this process with a log and snapshots on disk, as the actors keep them."""

    @initialize(
        metric=st.sampled_from(["cosine", "ip", "l2"]), shards=st.integers(1, 3),
        ids=st.lists(IDS, max_size=40, unique=True), seed=SEEDS,
    )  # fmt: skip
    def build(self, metric: Any, shards: int, ids: list[int], seed: int) -> None:
        self.root = tempfile.mkdtemp()
        self.patches = contextlib.ExitStack()
        # Flushing would take most of the time; versions must not expire on a slow machine.
        self.patches.enter_context(mock.patch("raysys.storage._storage._flush"))
        self.patches.enter_context(mock.patch("raysys.index._slot_rows.HORIZON_S", 1e9))
        self.history: dict[int, Model] = {}
        self.files = IndexFiles(Storage(self.root), "index")
        self.files.start_log()
        self.settings = exact_settings(metric, shards=shards)
        batch = batch_of(self.settings, ids, seed=seed)
        self.model = Model(self.settings)
        self.model.apply(batch)
        self._start(batch, 1)

    def _start(self, batch: ChangeBatch, version: int) -> None:
        """What `VectorIndex.build` does: the shards, and a first snapshot of them."""
        self.version = self.known = version
        self.history[version] = self.model.copy()
        self.shards = []
        for number in range(self.settings.shards):
            part = batch.of_shard(number, self.settings.shards)
            shard = (
                Shard.build(self.settings, part.ids, part.vectors, part.attributes, version)
                if len(part.ids)
                else Shard.empty(self.settings, SCHEMA, version)
            )
            self.shards.append(shard)
        self._write(lambda: None)

    def _write(self, between: Any) -> None:
        folder, versions = f"{self.version:020d}", []
        for number, shard in enumerate(self.shards):

            def write(state: Any, number: int = number) -> None:
                between()
                self.files.write_shard(folder, number, state)
                versions.append(state.version)

            shard.capture(write)
        manifest = Manifest(
            folder, max(versions), tuple(versions), len(self.model.rows), self.settings, SCHEMA
        )
        self.files.commit(manifest)
        self.files.prune(self.settings.keep_snapshots)

    def _change(self, ids: list[int], deleted: list[int], seed: int) -> None:
        self.version += 1
        deleted = [number for number in deleted if number not in ids]
        batch = batch_of(self.settings, ids, deleted, seed=seed)
        # As the writer joins waiting batches: the later one wins.
        record = encode(batch_of(self.settings, ids, deleted, seed=seed + 1), "a")
        record += encode(batch, "b")
        self.files.write_record(self.version, record)
        for number, shard in enumerate(self.shards):
            shard.apply(self.version, decode(record).of_shard(number, self.settings.shards))
        self.model.apply(batch)
        self.history[self.version] = self.model.copy()

    @rule(ids=SOME, deleted=SOME, seed=SEEDS)
    def change(self, ids: list[int], deleted: list[int], seed: int) -> None:
        self._change(ids, deleted, seed)

    @precondition(lambda self: self.model.rows)
    @rule(seed=SEEDS, share=st.sampled_from([0.2, 0.9, 1.0]))
    def delete_many(self, seed: int, share: float) -> None:
        drawn = np.random.default_rng(seed).permutation(list(self.model.rows))
        self._change([], drawn[: int(np.ceil(share * len(drawn)))].tolist(), seed)

    @rule(shard=st.integers(0, 2), count=st.integers(1, 9))
    def merge(self, shard: int, count: int) -> None:
        self.shards[shard % len(self.shards)].merge(count)

    @rule(shard=st.integers(0, 2), ids=SOME, deleted=SOME, seed=SEEDS)
    def compact(self, shard: int, ids: list[int], deleted: list[int], seed: int) -> None:
        chosen, self.known = self.shards[shard % len(self.shards)], self.version
        changes = iter([(ids, deleted)])

        def pause() -> None:
            for change in changes:
                self._change(*change, seed)

        chosen.compact(pause)

    @rule(ids=SOME, deleted=SOME, seed=SEEDS)
    def snapshot(self, ids: list[int], deleted: list[int], seed: int) -> None:
        changes = iter([(ids, deleted)])

        def between() -> None:
            for change in changes:
                self._change(*change, seed)

        self._write(between)

    @rule()
    def restart(self) -> None:
        manifest = self.files.manifest()
        assert manifest is not None
        self.known = self.version
        self.shards = []
        for number in range(self.settings.shards):
            shard = self.files.read_shard(manifest, number)
            for version, batch in self.files.changes(shard.version):
                assert version == shard.version + 1
                shard.apply(version, batch.of_shard(number, self.settings.shards))
            assert shard.version == self.version
            self.shards.append(shard)

    @rule(shards=st.integers(1, 3), older=st.booleans())
    def restore(self, shards: int, older: bool) -> None:
        manifest = self.files.manifests()[0 if older else -1]
        upto = manifest.version if older else self.version
        tables = [
            self.files.read_rows(manifest, number, upto)
            for number in range(manifest.settings.shards)
        ]
        table = pa.concat_tables(tables)
        if older:
            self.model = self.history[upto].copy()
        ids, vectors, attributes = split_rows(table, self.settings.metric)
        assert sorted(ids.tolist()) == sorted(self.model.rows)
        self.settings = self.settings.model_copy(update={"shards": shards})
        none = np.array([], np.int64)
        self._start(ChangeBatch(ids, vectors, attributes, none), self.files.last_version() + 1)

    @rule(
        seed=SEEDS, k=st.sampled_from([1, 3, 60]),
        filters=st.lists(st.none() | st.sampled_from(sorted(FILTERS)), min_size=2, max_size=2),
    )  # fmt: skip
    def query(self, seed: int, k: int, filters: list[str | None]) -> None:
        queries = queries_of(self.settings, 2, seed)
        results = [shard.search(queries, k, filters=filters)[1:] for shard in self.shards]
        self.model.check(*merge(results, k), queries, k, filters)

    @rule(seed=SEEDS, back=st.integers(1, 5), text=st.none() | st.sampled_from(sorted(FILTERS)))
    def query_the_past(self, seed: int, back: int, text: str | None) -> None:
        version = max(self.known, self.version - back)
        queries, filters = queries_of(self.settings, 2, seed), None if text is None else [text] * 2
        results = [shard.search(queries, 4, None, filters, version) for shard in self.shards]
        assert {result[0] for result in results} == {version}
        self.history[version].check(
            *merge([result[1:] for result in results], 4), queries, 4, filters
        )

    @rule(ids=SOME)
    def get(self, ids: list[int]) -> None:
        by_id = {}
        for shard in self.shards:
            numbers, vectors, attributes = shard.get(np.array(ids, np.int64))
            for row in vector_table(numbers, vectors, attributes).to_pylist():
                by_id[row.pop("id")] = row
        assert by_id == {
            number: row | {"vector": row["vector"].tolist()}
            for number, row in self.model.rows.items()
            if number in ids
        }

    @invariant()
    def every_shard_has_its_rows(self) -> None:
        if not hasattr(self, "shards"):
            return
        queries, k = queries_of(self.settings, 1), len(self.model.rows) + 1
        results = [shard.search(queries, k)[1:] for shard in self.shards]
        self.model.check(*merge(results, k), queries, k)
        for number, shard in enumerate(self.shards):
            mine = np.array(sorted(self.model.rows), np.int64)
            mine = mine[shard_of(mine, self.settings.shards) == number]
            assert sorted(shard.matching(None, 999).tolist()) == mine.tolist()
            assert (shard.size, shard.version) == (len(mine), self.version)
            inner = shard._rows
            aside = inner.died[shard._merged : inner.length]
            assert shard._dead_aside == (aside != np.iinfo(np.int64).max).sum()
            in_graph = (inner.died[: shard._merged] == np.iinfo(np.int64).max).sum()
            assert shard._graph.size == in_graph

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.patches.close()
            shutil.rmtree(self.root, ignore_errors=True)


Index.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestIndex = Index.TestCase
