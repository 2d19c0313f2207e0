import functools
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysys.data import Table, importance_sample, reservoir_sample, sample
from raysys.data import _order_statistics as ranks
from raysys.data.sampling._sample import (
    _drawn_with_weight,
    allot,
    choose,
    drawn,
    importance_limits,
    random_key,
)
from raysys.errors import ArgumentError, DataError
from tests.data.cut import each_block


def _sample(table: pa.Table, rows: int, *cuts: int, seed: int = 0, **options: Any) -> pa.Table:
    """`sample` without Ray."""
    by = options.pop("stratify", ())
    limits = choose(each_block(table, *cuts), rows, seed=seed, by=by, **options)
    key = random_key(seed, options.get("weights"))
    return table.filter(pa.array(drawn(table, 0, key, by, limits)))


def _numbered(rows: int, **columns: Any) -> pa.Table:
    return pa.table({"row": np.arange(rows), **columns})


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_sample_does_not_depend_on_the_blocks(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 200))
    table = _numbered(n, g=np.arange(n) % 3, w=1.0 + np.arange(n) % 7)
    cuts = data.draw(st.lists(st.integers(0, n), max_size=6))
    rows = data.draw(st.integers(1, n))
    seed = data.draw(st.integers(0, 2**31))
    strata: dict[str, Any] = {"stratify": ("g",)}
    for options in ({}, {"weights": "w"}, strata, strata | {"allocation": "equal"}):
        uncut = _sample(table, rows, seed=seed, **options)
        assert len(uncut) == rows
        assert _sample(table, rows, *cuts, seed=seed, **options).equals(uncut)
        assert uncut["row"].to_pylist() == sorted(set(uncut["row"].to_pylist()))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_reservoir_sample_equals_a_sample(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300))
    table = _numbered(n, w=(1.0 + np.arange(n)) % 7)
    rows = data.draw(st.integers(1, n - n // 7))  # as many have a positive weight
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, n), max_size=9))), n]
    batches = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    for weights in (None, "w"):
        reservoir = reservoir_sample(batches, rows, weights=weights, seed=n)
        assert reservoir.equals(_sample(table, rows, weights=weights, seed=n).combine_chunks())


def test_a_reservoir_has_all_rows_of_a_short_stream_of_record_batches() -> None:
    batches = _numbered(5).to_batches(max_chunksize=2)
    assert reservoir_sample(batches, 9)["row"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_reservoir_of_a_long_stream_holds_no_more_than_three_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from raysys.data.sampling import _sample as module

    sizes: list[int] = []
    smallest = module._smallest

    def watched(keys: np.ndarray, rows: Any, count: int) -> Any:
        sizes.append(len(rows))
        return smallest(keys, rows, count)

    monkeypatch.setattr(module, "_smallest", watched)
    reservoir_sample((_numbered(100) for _ in range(1000)), 100)
    assert 5 < len(sizes) < 50
    assert max(sizes) <= 300


@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_is_drawn_equally_often(seed: int) -> None:
    """Chi-square over rows, the seeds being independent draws."""
    table, draws = _numbered(40), 600
    counts = Counter(
        row
        for number in range(draws)
        for row in _sample(table, 10, seed=seed * draws + number)["row"].to_pylist()
    )
    # Without replacement counts vary less than the multinomial's: the statistic is scaled.
    observed = np.array([counts[row] for row in range(40)])
    expected = draws / 4
    statistic = ((observed - expected) ** 2).sum() / expected / (1 - 1 / 4) * 39 / 40
    assert 0.001 < stats.chi2.sf(statistic, 39) < 0.999


def test_the_first_of_a_weighted_sample_is_drawn_in_proportion_to_its_weight() -> None:
    weights = np.array([1.0, 2.0, 3.0, 10.0, 0.0])
    table, draws = _numbered(5, w=weights), 4000
    counts = Counter(
        _sample(table, 1, seed=seed, weights="w")["row"][0].as_py() for seed in range(draws)
    )
    assert counts[4] == 0
    observed = [counts[row] for row in range(4)]
    assert stats.chisquare(observed, draws * weights[:4] / 16).pvalue > 0.001


def test_a_weighted_pair_is_drawn_as_one_row_after_the_other() -> None:
    weights = np.array([1.0, 2.0, 5.0])
    table, draws = _numbered(3, w=weights), 4000
    left_out = Counter(
        3 - sum(_sample(table, 2, seed=seed, weights="w")["row"].to_pylist())
        for seed in range(draws)
    )
    share = weights / 8

    def last(c: int) -> float:  # the chance that c is the one that neither draw takes
        a, b = (n for n in range(3) if n != c)
        return share[a] * share[b] / (1 - share[a]) + share[b] * share[a] / (1 - share[b])

    expected = [draws * last(c) for c in range(3)]
    assert stats.chisquare([left_out[c] for c in range(3)], expected).pvalue > 0.001


def test_proportional_strata_get_their_share_to_a_row() -> None:
    sizes = {1: 50, 2: 30, 3: 15, 4: 5}
    for total in range(1, 101):
        shares = allot(sizes, total, "proportional")
        assert sum(shares.values()) == total
        assert all(abs(shares[g] - total * n / 100) < 1 for g, n in sizes.items())


def test_equal_strata_are_filled_up_from_the_larger_ones() -> None:
    assert allot({1: 50, 2: 3, 3: 20}, 23, "equal") == {1: 10, 2: 3, 3: 10}
    assert allot({1: 50, 2: 3, 3: 20}, 73, "equal") == {1: 50, 2: 3, 3: 20}
    with pytest.raises(DataError, match="give 'proportional' or 'equal'"):
        allot({1: 1}, 1, "even")


def test_a_stratified_sample_counts_each_stratum() -> None:
    rng = np.random.default_rng(0)
    table = _numbered(1000, g=rng.choice(["a", "b", None], 1000, p=[0.7, 0.2, 0.1]))
    drawn = _sample(table, 100, 333, stratify=("g",)).to_pandas()["g"].value_counts(dropna=False)
    total = table.to_pandas()["g"].value_counts(dropna=False)
    assert (abs(drawn - total / 10) < 1).all()


@pytest.mark.parametrize("kind", ["few", "many equal", "wide"])
def test_ranks_are_those_of_a_sort(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_MAX_NUMBERS", 256)  # so that ranges are narrowed in several rounds
    rng = np.random.default_rng(1)
    values = {
        "few": rng.integers(0, 2**64, 100, np.uint64),
        "many equal": rng.integers(5, 9, 5000).astype(np.uint64) << np.uint64(40),
        "wide": (rng.exponential(size=5000) ** 9).view(np.uint64),
    }[kind]
    groups = rng.integers(0, 3, len(values))
    table = pa.table({"key": values, "g": groups})
    key = _column_key
    for by in ((), ("g",)):
        counted = ranks.count_groups(each_block(table, 31, 77), key, by)
        assert sum(group.rows for group in counted.values()) == len(values)
        for group, about in counted.items():
            mine = values[ranks.groups_of(table, by) == group]
            pairs = [(group, rank) for rank in {1, 2, about.rows // 3, about.rows}]
            places = ranks.locate(each_block(table, 31, 77), key, pairs, counted, by)
            for (_, rank), place in zip(pairs, places, strict=True):
                assert place.key == np.sort(mine)[rank - 1]
                assert place.below == (mine < place.key).sum()
                assert place.upto == (mine <= place.key).sum()


def _column_key(block: pa.Table, first: int) -> np.ndarray:
    return block["key"].to_numpy()


@pytest.mark.parametrize(
    "values",
    [
        np.array([-5, 3, 0, 2**40, -(2**62)]),
        np.array([-1.5, 0.0, 1e300, -1e-300, np.inf, -np.inf]),
        np.array([3, 2**64 - 1, 0], np.uint64),
        np.array(["2020-01-01", "1950-06-01T12:00", "2262-01-01"], "datetime64[ns]"),
        np.array(["2020-01-01", "1950-06-01"], "datetime64[D]"),
    ],
    ids=["int", "float", "uint", "time", "date"],
)
def test_keys_sort_as_their_values_and_back(values: np.ndarray) -> None:
    column = pa.chunked_array([pa.array(values)])
    keys = ranks.ordered(column, "a")
    assert (np.argsort(keys) == np.argsort(values)).all()
    assert [ranks.value_of(key, column.type) for key in keys.tolist()] == column.to_pylist()


def _importance_sample(table: pa.Table, rows: int, seed: int, *cuts: int) -> pa.Table:
    """`importance_sample` without Ray."""
    limits, beyond = importance_limits(each_block(table, *cuts), rows, len(table), "w", seed)
    return _drawn_with_weight(table, 0, random_key(seed, "w"), limits, "w", beyond, "weight")[0]


def test_a_sum_over_importance_samples_is_unbiased_and_varies_little() -> None:
    rng = np.random.default_rng(2)
    values = rng.lognormal(sigma=1.5, size=60)
    table = pa.table({"v": values, "w": values * rng.uniform(0.7, 1.4, 60)})
    estimates = []
    for seed in range(1500):
        rows = _importance_sample(table, 15, seed)
        assert len(rows) == 15
        estimates.append(rows["v"].to_numpy() @ rows["weight"].to_numpy())
    error = (np.mean(estimates) - values.sum()) / (np.std(estimates, ddof=1) / 1500**0.5)
    assert abs(error) < 3.3
    plain = [60 / 15 * rng.choice(values, 15, replace=False).sum() for _ in range(1500)]
    assert np.std(estimates) < np.std(plain) / 2


def test_an_importance_sample_does_not_depend_on_the_blocks(ray_cluster: None) -> None:
    table = _numbered(100, w=1.0 + np.arange(100) % 13)
    expected = _importance_sample(table, 20, 5)
    assert _importance_sample(table, 20, 5, 7, 50).equals(expected)
    blocks = Table.from_arrow(table, 30)
    assert importance_sample(blocks, 20, weights="w", seed=5).to_arrow().equals(expected)
    with pytest.raises(DataError, match="has a column 'w' already"):
        importance_sample(blocks, 20, weights="w", column="w")


def test_the_weights_of_a_census_are_one(ray_cluster: None) -> None:
    table = Table.from_arrow(_numbered(4, w=[1.0, 0.0, 2.0, 3.0]), 3)
    assert importance_sample(table, 3, weights="w").to_pandas()["weight"].tolist() == [1, 1, 1]


def test_a_sample_of_a_table_equals_that_of_its_rows(ray_cluster: None) -> None:
    rows = _numbered(5000, g=np.arange(5000) % 4, w=np.arange(5000) % 9)
    table = Table.from_arrow(rows, 1300)
    options: Any
    for options in ({}, {"stratify": ("g",)}, {"weights": "w"}):
        expected = _sample(rows, 500, seed=3, **options)
        assert sample(table, 500, seed=3, **options).to_arrow().equals(expected)
        assert sample(table, fraction=0.1, seed=3, **options).to_arrow().equals(expected)
    assert not sample(table, 500, seed=4).to_arrow().equals(_sample(rows, 500, seed=3))


def test_invalid_samples_are_refused(ray_cluster: None) -> None:
    table = Table.from_arrow(_numbered(4, w=[1.0, 0.0, 0.0, 3.0], bad=[1.0, -1.0, None, np.nan]))
    refused = functools.partial(pytest.raises, DataError)
    with refused(match="cannot draw 5 rows from 4"):
        sample(table, 5)
    with pytest.raises(ArgumentError, match=r"stratify is the text 'w', not .*: give \['w'\]"):
        sample(table, 2, stratify="w")
    with refused(match="give one of them"):
        sample(table)
    with refused(match=r"fraction=1\.5"):
        sample(table, fraction=1.5)
    with refused(match="cannot draw 3 rows: only 2 have a positive weight"):
        sample(table, 3, weights="w")
    with refused(match="cannot draw 4 rows: only"):
        sample(table, 4, weights="w")
    with refused(match="bad: 3 rows of a block have a missing, negative"):
        sample(table, 1, weights="bad")
    with refused(match="no column 'x' of weights"):
        sample(table, 1, weights="x")
    with refused(match="before its first batch"):
        reservoir_sample([], 1)
