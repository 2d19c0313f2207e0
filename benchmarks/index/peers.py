"""The peers: each searches one set of vectors by inner product, in this process.

The graphs (hierarchical navigable small worlds, Malkov & Yashunin, 2018) are built alike: 16 links
a node, 200 candidates for each insertion.

Example:
    >>> peer = Hnswlib(threads=2)  # doctest: +SKIP
    >>> peer.build(data.vectors, data.price)
    >>> peer.set_ef(40)
    >>> ids = peer.query(data.queries, 10)
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.index._peer import EF_CONSTRUCTION, M, Peer, package
from benchmarks.index.data import exact


class Exact(Peer):
    """NumPy compares the query with every row; its BLAS takes the threads that it finds."""

    name = "exact, NumPy"

    def _build(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """See the base class."""
        return exact(self._vectors, vectors, k)

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """By a mask over all rows."""
        return exact(self._vectors, vector[None], k, self._mask(low, high))[0]


class Hnswlib(Peer):
    """hnswlib, in S shards: row i is in shard `i % S`.

    With one shard it is called as it comes. With more, a batch goes to all shards at once, each in
    a thread of a pool; a single query goes to one after the other, which costs less than to wake
    the threads. NumPy merges the answers.
    """

    def __init__(self, threads: int = 2, shards: int = 1) -> None:
        super().__init__(threads)
        self.name = "hnswlib" if shards == 1 else f"hnswlib, {shards} shards"
        self._hnswlib = package("hnswlib")
        self.shards = shards
        self._each = max(1, threads // shards)
        self._pool = ThreadPoolExecutor(min(threads, shards))
        self._indexes: list[Any] = []
        self._prices: list[int] = []

    def _build(self, vectors: np.ndarray) -> None:
        self._prices = self._price.tolist()  # Python reads a list faster than an array
        ids = np.arange(len(vectors))
        self._indexes = list(
            self._pool.map(
                lambda shard: self._shard(vectors[shard :: self.shards], ids[shard :: self.shards]),
                range(self.shards),
            )
        )

    def _shard(self, vectors: np.ndarray, ids: np.ndarray) -> Any:
        index = self._hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=0)
        index.add_items(vectors, ids, num_threads=self._each)
        return index

    def set_ef(self, ef: int) -> None:
        """The same for each shard."""
        for index in self._indexes:
            index.set_ef(ef)

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """See the base class."""
        return self._merged(vectors, k, num_threads=self._each)

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """By a Python function that hnswlib asks at each node, in one thread, as it advises."""
        prices = self._prices
        return self._merged(
            vector[None], k, num_threads=1, filter=lambda label: low <= prices[label] < high
        )[0]

    def _merged(self, vectors: np.ndarray, k: int, **how: Any) -> np.ndarray:
        if self.shards == 1:
            return _knn(self._indexes[0], vectors, k, how)[0]
        ask = map if len(vectors) == 1 else self._pool.map
        found = ask(lambda index: _knn(index, vectors, k, how), self._indexes)
        ids, distances = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best = np.argsort(distances, axis=1)[:, :k]
        return np.take_along_axis(ids, best, axis=1)

    def close(self) -> None:
        """See the base class."""
        self._indexes = []
        self._pool.shutdown()


class Faiss(Peer):
    """faiss's IndexHNSWFlat; its filter is a bitmap of rows, made anew for each query."""

    name = "faiss"

    def __init__(self, threads: int = 2) -> None:
        super().__init__(threads)
        self._faiss = package("faiss", "faiss-cpu")

    def _build(self, vectors: np.ndarray) -> None:
        self._faiss.omp_set_num_threads(self.threads)
        inner_product = self._faiss.METRIC_INNER_PRODUCT
        self._index = self._faiss.IndexHNSWFlat(vectors.shape[1], M, inner_product)
        self._index.hnsw.efConstruction = EF_CONSTRUCTION
        self._index.add(vectors)

    def set_ef(self, ef: int) -> None:
        """See the base class."""
        self._index.hnsw.efSearch = ef

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """See the base class."""
        self._faiss.omp_set_num_threads(min(self.threads, len(vectors)))
        return self._index.search(vectors, k)[1]

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """The graph is walked as without a filter; rows outside of it are not answered."""
        self._faiss.omp_set_num_threads(1)
        bitmap = np.packbits(self._mask(low, high), bitorder="little")
        how = self._faiss.SearchParametersHNSW(
            sel=self._faiss.IDSelectorBitmap(bitmap), efSearch=self._index.hnsw.efSearch
        )
        return self._index.search(vector[None], k, params=how)[1][0]


class Usearch(Peer):
    """USearch, in float32; it has filters in C++ and Rust, but none in Python."""

    name = "USearch"
    filters = False

    def __init__(self, threads: int = 2) -> None:
        super().__init__(threads)
        self._usearch = package("usearch.index", "usearch")

    def _build(self, vectors: np.ndarray) -> None:
        self._index = self._usearch.Index(
            ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=M,
            expansion_add=EF_CONSTRUCTION,
        )  # fmt: skip
        self._index.add(np.arange(len(vectors)), vectors, threads=self.threads)

    def set_ef(self, ef: int) -> None:
        """See the base class."""
        self._index.expansion_search = ef

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """See the base class."""
        threads = min(self.threads, len(vectors))
        keys = self._index.search(vectors, k, threads=threads).keys
        return keys.reshape(len(vectors), -1).astype(np.int64)


class Qdrant(Peer):
    """Qdrant Edge: the shard that the Qdrant server is made of, in this process.

    It is Qdrant's own Rust code: segments with HNSW graphs, points with a payload, and an index of
    the price. No server and no network stand in the way, which only helps it. For each filter
    it estimates how many rows pass: few are compared one by one, more are searched in the graph,
    which has further links between rows of similar price. (The local mode of qdrant-client is
    another thing: it has no graph, NumPy compares all rows.)
    """

    name = "Qdrant Edge"
    _BATCH = 1_000
    _SCAN_KB = 2_000  # filters that leave less are answered without the graph; 10,000 is slower

    def __init__(self, threads: int = 2) -> None:
        super().__init__(threads)
        self._edge = package("qdrant_edge", "qdrant-edge-py")

    def _build(self, vectors: np.ndarray) -> None:
        edge = self._edge
        self._folder = tempfile.TemporaryDirectory(prefix="qdrant")
        self._params = edge.SearchParams()
        threads, cached = self.threads, edge.Memory.Cached
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=vectors.shape[1], distance=edge.Distance.Dot),
            hnsw_config=edge.HnswIndexConfig(M, EF_CONSTRUCTION, self._SCAN_KB, threads),
            optimizers=edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
            max_search_threads=threads, payload_memory=cached, wal_enabled=False,
        )  # fmt: skip
        self._shard = edge.EdgeShard.create(self._folder.name, config)
        update = edge.UpdateOperation
        self._shard.update(update.create_field_index("price", edge.PayloadSchemaType.Integer))
        for start in range(0, len(vectors), self._BATCH):
            rows = vectors[start : start + self._BATCH].tolist()
            prices = self._price[start : start + self._BATCH].tolist()
            points = [
                edge.Point(start + number, row, {"price": price})
                for number, (row, price) in enumerate(zip(rows, prices, strict=True))
            ]
            self._shard.update(update.upsert_points(points))
        self._shard.optimize()

    def set_ef(self, ef: int) -> None:
        """See the base class."""
        self._params = self._edge.SearchParams(hnsw_ef=ef)

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """Batches as Qdrant's own batches."""
        requests = [self._request(row, k) for row in vectors.tolist()]
        found = self._shard.query_batch(self._edge.QueryBatchRequest(requests))
        return np.array([[point.id for point in each] for each in found], np.int64)

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """By a condition on the payload."""
        bounds = self._edge.RangeFloat(gte=low, lt=high)
        condition = self._edge.FieldCondition("price", range=bounds)
        wanted = self._request(vector.tolist(), k, filter=self._edge.Filter(must=[condition]))
        ids = [point.id for point in self._shard.query(wanted)]
        return np.array(ids + [-1] * (k - len(ids)), np.int64)

    def _request(self, row: list[float], k: int, **more: Any) -> Any:
        nearest = self._edge.Query.Nearest(row)
        return self._edge.QueryRequest(k, query=nearest, params=self._params, **more)

    def close(self) -> None:
        """See the base class."""
        self._shard.close()
        self._folder.cleanup()


def _knn(
    index: Any, vectors: np.ndarray, k: int, how: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances `(q, k)` of one hnswlib index; it raises where a filter leaves fewer."""
    try:
        ids, distances = index.knn_query(vectors, k, **how)
    except RuntimeError:
        if "filter" not in how:
            raise
        shape = len(vectors), k
        return np.full(shape, -1), np.full(shape, np.inf, np.float32)
    return ids.astype(np.int64), distances
