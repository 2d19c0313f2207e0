"""`python -m benchmarks.index`: our index and the peers on the same vectors, side by side."""

import collections
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks._figures import Report, arguments
from benchmarks.index import changing, faults
from benchmarks.index._peer import Peer
from benchmarks.index.data import PRICES, Data, exact, make, recall
from benchmarks.index.measure import FILTER_EFS, queries_per_s, smallest_ef
from benchmarks.index.ours import Fused, Ours
from benchmarks.index.peers import Exact, Faiss, Hnswlib, Qdrant, Usearch
from raysys import cluster
from raysys.storage import Storage

_K = 10
_SHARDS = 2
_SHARES = (0.5, 0.05, 0.005)


def main() -> None:
    """Run all of it."""
    asked = arguments(
        __doc__, full="one query at 1,000,000 vectors against exact search, and nothing else"
    )
    size = 1_000_000 if asked.full else 50_000 if asked.quick else 200_000
    report, repeats = Report(), 3 if asked.quick else 5
    cluster.connect()
    data = make(size, 1_000)
    truth = exact(data.vectors, data.queries, _K)
    with tempfile.TemporaryDirectory() as folder:
        if asked.full:
            _measure_full(report, data, truth, Storage(folder))
        else:
            _measure(report, data, truth, Storage(folder), repeats)
            faults.run(report, 10 if asked.quick else 50)
    report.write(asked.json)


def _measure_full(report: Report, data: Data, truth: np.ndarray, storage: Storage) -> None:
    actors, whole = Ours(storage, _SHARDS), Ours(storage, 1)
    _build([actors, whole], data)
    fused = Fused(whole)
    _against_exact(report, data, truth, [fused, whole, actors], full=True)
    for peer in (fused, whole, actors):
        peer.close()


def _build(peers: list[Peer], data: Data) -> None:
    for peer in peers:
        peer.build(data.vectors, data.price)
        print(f"{peer.name}: built in {peer.build_seconds:.1f} s", flush=True)


def _measure(report: Report, data: Data, truth: np.ndarray, storage: Storage, repeats: int) -> None:
    plain, sharded = Hnswlib(2), Hnswlib(2, shards=_SHARDS)
    actors, whole = Ours(storage, _SHARDS), Ours(storage, 1)
    built: list[Peer] = [plain, actors, sharded, whole, Faiss(2), Usearch(2), Qdrant(2)]
    _build(built, data)
    fused = Fused(whole)
    report.add(
        "build of 2 shards against hnswlib with 2 threads",
        plain.build_seconds / actors.build_seconds, "times", above=1.1,
    )  # fmt: skip
    _recall(report, data, truth, plain, actors)
    _through_actors(report, data, truth, actors, sharded, repeats)
    _one_by_one(report, data, truth, plain, actors, whole, fused, repeats)
    _against_exact(report, data, truth, [fused, whole, actors], full=False)
    _filters(report, data, plain, fused, repeats)
    _table(
        report, data, truth, [Exact(2), *(one for one in built if one is not whole), fused], repeats
    )
    # Last: its rows would be found by the queries before.
    changing.run(report, actors.index, data.queries, 4.0 if repeats < 5 else 10.0, len(data.price))
    for peer in (fused, *built):
        peer.close()


def _recall(report: Report, data: Data, truth: np.ndarray, plain: Hnswlib, actors: Ours) -> None:
    for ef in (20, 40):
        found = []
        for peer in (plain, actors):
            peer.set_ef(ef)
            found.append(recall(peer.query(data.queries, _K), truth))
        report.add(f"recall@10, ef {ef}: one hnswlib index", found[0], "share")
        report.add(f"recall@10, ef {ef}: {_SHARDS} shards", found[1], "share", above=found[0])


def _through_actors(
    report: Report, data: Data, truth: np.ndarray, actors: Ours, sharded: Hnswlib, repeats: int
) -> None:
    """Batches of 100, at the ef that reaches the recall."""
    ef, _ = smallest_ef(sharded, lambda rows: sharded.query(rows, _K), data.queries, truth)
    actors.set_ef(ef)
    ratio = _ratio(
        lambda: queries_per_s(lambda rows: actors.query(rows, _K), data.queries, 100, 3),
        lambda: queries_per_s(lambda rows: sharded.query(rows, _K), data.queries, 100, 3),
        repeats,
    )
    name = "queries/s in batches of 100 through the actors against hnswlib"
    report.add(f"{name} with the same shards and threads", ratio, "times", above=0.8)


def _one_by_one(
    report: Report, data: Data, truth: np.ndarray, plain: Hnswlib, actors: Ours, whole: Ours,
    fused: Fused, repeats: int,
) -> None:  # fmt: skip
    for peer in (plain, actors, whole, fused):
        smallest_ef(peer, _ask(peer), data.queries, truth)
    for peer in (whole, actors):
        p50 = statistics.median([_p50(peer, data.queries) for _ in range(repeats)])
        report.add(f"one query through {peer.name}, p50", 1000 * p50, "ms", below=2)
    # The same graph's cost with and without us: ef of the one is that of the other.
    ef, _ = smallest_ef(plain, _ask(plain), data.queries, truth)
    fused.set_ef(ef)
    ratio = _ratio(
        lambda: _p50(fused, data.queries), lambda: _p50(plain, data.queries), 2 * repeats
    )
    report.add("one query fused, p50 against hnswlib's own", ratio, "times", below=1.2)


def _against_exact(
    report: Report, data: Data, truth: np.ndarray, peers: list[Peer], *, full: bool
) -> None:
    """Fused and through one actor, which have bars with all rows, and through two."""
    searched = Exact(2)
    searched.build(data.vectors, data.price)
    for peer in peers:
        smallest_ef(peer, _ask(peer), data.queries, truth)
        ratio = _ratio(
            partial(_p50, searched, data.queries[:50]), partial(_p50, peer, data.queries), 3
        )
        name = f"one by one, recall >= 0.95: speed-up over exact search, {peer.name}"
        report.add(name, ratio, "times", above=88 if full and peer is not peers[-1] else None)


def _filters(report: Report, data: Data, plain: Hnswlib, fused: Fused, repeats: int) -> None:
    """Each query has a price range of its own, new each time: nothing can be remembered.

    hnswlib takes one filter a call, and its Python function holds the interpreter lock.
    """
    queries, random = data.queries[:100], np.random.default_rng(0)
    for share in _SHARES:

        def ranges(share: float = share) -> list[tuple[int, int]]:
            lows = random.integers(0, int(PRICES * (1 - share)), len(queries))
            return [(int(low), int(low + PRICES * share)) for low in lows]

        fixed = ranges()
        truth = np.concatenate(
            [
                exact(data.vectors, query[None], _K, (data.price >= low) & (data.price < high))
                for query, (low, high) in zip(queries, fixed, strict=True)
            ]
        )
        each = partial(_filtered, ranges=fixed)
        title = f"filters that keep {share:.1%}"
        for peer in (plain, fused):
            _, reached = smallest_ef(peer, partial(each, peer), queries, truth, efs=FILTER_EFS)
            above = 0.95 if peer is fused else None
            report.add(f"{title}: recall@10, {peer.name}", reached, "share", above=above)
        batch = partial(fused.batch_filtered, queries, _K)
        title = f"{title}: queries/s against hnswlib's Python filter"
        for name, ask, same, bar in (
            ("a batch of 100", batch, False, 5),
            ("one by one", partial(_filtered, fused, queries), False, None),
            ("a batch of 100 with one filter", batch, True, None),
        ):
            ratios = []
            for _ in range(repeats):
                asked = ranges()[:1] * len(queries) if same else ranges()
                slow = _seconds(partial(_filtered, plain, queries, asked))
                ratios.append(slow / _seconds(partial(ask, asked)))
            report.add(f"{title}, {name}", statistics.median(ratios), "times", above=bar)


def _filtered(peer: Peer, queries: np.ndarray, ranges: list[tuple[int, int]]) -> np.ndarray:
    """Ids `(q, k)`, each query with its own range of prices."""
    found = [
        peer.filtered(query, _K, *limits) for query, limits in zip(queries, ranges, strict=True)
    ]
    return np.stack([one for one in found if one is not None])


def _table(report: Report, data: Data, truth: np.ndarray, peers: list[Peer], repeats: int) -> None:
    """All side by side, each at the smallest ef that exceeds a recall of 0.95, in turns."""
    for peer in peers:
        if isinstance(peer, Exact):
            peer.build(data.vectors, data.price)
    reached = {peer: smallest_ef(peer, _ask(peer), data.queries, truth) for peer in peers}
    sizes = {"one by one": 1, "in batches of 100": 100}
    speeds: dict[tuple[Peer, str], list[float]] = collections.defaultdict(list)
    for _ in range(repeats):
        for peer, (name, batch) in itertools.product(peers, sizes.items()):
            few = data.queries[:100] if isinstance(peer, Exact) else data.queries
            rows = few if batch == 1 else data.queries
            speeds[peer, name].append(queries_per_s(_ask(peer), rows, batch, 1))
    for peer in peers:
        ef, found = reached[peer]
        report.add(f"{peer.name}: build", peer.build_seconds, "s")
        report.add(f"{peer.name}: ef", ef, "candidates")
        report.add(f"{peer.name}: recall@10", found, "share")
        for name in sizes:
            report.add(f"{peer.name}: {name}", statistics.median(speeds[peer, name]), "queries/s")


def _ask(peer: Peer) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: peer.query(rows, _K)


def _p50(peer: Peer, queries: np.ndarray) -> float:
    """Seconds of the median query, asked one after the other."""
    return statistics.median([_seconds(partial(peer.query, row[None], _K)) for row in queries])


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _ratio(first: Callable[[], float], second: Callable[[], float], repeats: int) -> float:
    """The median of the ratios of measurements taken one after the other."""
    return statistics.median([first() / second() for _ in range(repeats)])


if __name__ == "__main__":
    main()
