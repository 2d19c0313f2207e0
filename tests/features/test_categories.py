import numpy as np
import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import OneHotEncoder

from raysys.features import Crossed, Hashed, OneHot, TextHashed
from raysys.features._hashing import hash_of, pair_hash, words
from tests.features.local import bulk, fit


def test_one_hot_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    column = np.array(["a", "b", "c", "d", "e"])[rng.choice(5, 400, p=[0.4, 0.3, 0.2, 0.07, 0.03])]
    new = np.array([*column, "unseen"])
    peer = OneHotEncoder(
        max_categories=4, handle_unknown="infrequent_if_exist", sparse_output=False
    )
    peer.fit(column[:, None])
    features = bulk(fit({"c": column}, OneHot(["c"], max_categories=3)), {"c": new})
    assert list(features) == ["c=a", "c=b", "c=c", "c_other", "c_missing"]
    np.testing.assert_array_equal(
        np.stack(list(features.values())[:4], 1), peer.transform(new[:, None])
    )
    assert not features["c_missing"].any()


def test_a_missing_category_differs_from_an_unseen_one() -> None:
    rows = {"c": [7, 7, None, 3]}
    features = bulk(fit(rows, OneHot(["c"], max_categories=1)), {"c": [7, 3, 99, None]})
    np.testing.assert_array_equal(
        np.stack([features["c=7"], features["c_other"], features["c_missing"]], 1),
        [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]],
    )


def test_ties_in_frequency_are_broken_by_text() -> None:
    rows = {"c": ["z", "b", "a", "z"]}
    fitted = fit(rows, OneHot(["c"], max_categories=2))
    assert fitted.feature_names == ("c=a", "c=z", "c_other", "c_missing")


def test_unseen_categories_are_hashed() -> None:
    values = [f"N{number}" for number in range(200)]
    fitted = fit({"c": ["x"]}, Hashed(["c"], buckets=16))
    features = np.stack(list(bulk(fitted, {"c": [*values, None]}).values()), 1)
    np.testing.assert_array_equal(features.sum(axis=1), [1] * 200 + [0])
    assert features.argmax(axis=1)[:-1].tolist() == [hash_of(value) % 16 for value in values]
    ordinal = bulk(fit({"c": ["x"]}, Hashed(["c"], buckets=16, encode="ordinal")), {"c": [5, None]})
    assert ordinal["c_bucket"].tolist() == [hash_of("5") % 16, -1]


@pytest.mark.parametrize("rows", [4, 200])
def test_crossed_categories_depend_on_both_and_on_their_order(rows: int) -> None:
    table = {"a": [*"xxy", None] * (rows // 4), "b": [*"xyx", "x"] * (rows // 4)}
    fitted = fit(table, Crossed(["a", "b"], buckets=4096, encode="ordinal"))
    features = bulk(fitted, table)["a*b_bucket"]
    pairs = [pair_hash(hash_of(a), hash_of(b)) % 4096 for a, b in zip(*table.values(), strict=True)]
    assert features.tolist() == pairs
    assert len(set(pairs)) == 4
    onehot = np.stack(list(bulk(fit(table, Crossed(["a", "b"], buckets=64)), table).values()), 1)
    assert (onehot.sum(axis=1) == 1).all()
    assert onehot.argmax(axis=1).tolist() == [pair % 64 for pair in pairs]


@pytest.mark.parametrize("ngrams", [1, 2, 3])
def test_hashed_texts_count_the_ngrams_of_scikit_learn(ngrams: int) -> None:
    texts = ["the cat saw the cat", "", "one", "The CAT saw", "a b_c 7 d e", "été 日本 x", "one"]
    peer = CountVectorizer(ngram_range=(1, ngrams), analyzer="word", token_pattern=r"\w+")
    counted = peer.fit_transform(texts).toarray()
    buckets = 1 << 12
    places = []
    for gram in peer.get_feature_names_out():
        first, *more = (hash_of(word) for word in words(gram))
        for word in more:
            first = pair_hash(first, word)
        places.append(first % buckets)
    expected = np.zeros((len(texts) + 1, buckets), np.float32)
    np.add.at(expected.T, places, np.vstack([counted, np.zeros_like(counted[:1])]).T)
    fitted = fit({"t": texts}, TextHashed(["t"], buckets=buckets, ngrams=ngrams))
    features = bulk(fitted, pa.table({"t": pa.array([*texts, None])}))
    np.testing.assert_array_equal(np.stack(list(features.values()), 1), expected)
