"""Ranges of numbers: recognized without the parser, with the parser's meaning."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.index._filter import Filter
from raysys.index._filter_intervals import IntervalParser, Intervals

TYPES = {
    name: getattr(pa, name)()
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
} | {"float32": pa.float32(), "float64": pa.float64(), "release-year": pa.int16()}
OTHERS = {"text": pa.string(), "flag": pa.bool_(), "class": pa.int64()}
SCHEMA = pa.schema(TYPES | OTHERS)
VALUES = [0, 1, 2, 3, 100]
ROWS = pa.table(
    {name: pa.array(VALUES, kind) for name, kind in TYPES.items()}
    | {"text": list("abcde"), "flag": [True] * 5, "class": VALUES},
    SCHEMA,
)
NUMBERS = st.sampled_from(
    ["0", "1", "2", "-1", "3", "1.5", "2.0", "-0.5", "0.1", "99.9", "123456789012345678", "300"]
)
OPERATORS = st.sampled_from(["<", "<=", ">", ">=", "=="])


def _matching(intervals: Intervals) -> list[bool]:
    mask = np.ones(len(ROWS), bool)
    for name, low, high in intervals:
        mask &= (ROWS[name].to_numpy() >= low) & (ROWS[name].to_numpy() <= high)
    return mask.tolist()


@st.composite
def _ranges(draw: st.DrawFn) -> str:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([name for name in TYPES if name not in ("uint64",)]))
        name = f"`{name}`" if "-" in name else name
        left, right = f"{draw(NUMBERS)} {draw(OPERATORS)} ", f" {draw(OPERATORS)}{draw(NUMBERS)}"
        parts.append(draw(st.sampled_from([left + name, name + right, left + name + right])))
    return " and ".join(parts)


@given(_ranges())
def test_intervals_mean_what_the_parser_says(text: str) -> None:
    (intervals,) = IntervalParser(SCHEMA)([text])
    assert intervals is not None
    assert _matching(intervals) == Filter(text, SCHEMA).mask(ROWS).tolist()


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ("3 <= int64 < 5", [("int64", 3, 4)]),
        ("`release-year` > 1990", [("release-year", 1991, 2**63 - 1)]),
        ("int64 > 2 and int64 < 9 and int8 == 1", [("int64", 3, 8), ("int8", 1, 1)]),
        ("int32 == 1.5", [("int32", 2, 1)]),
        ("float64 < 0.5", [("float64", -np.inf, np.nextafter(0.5, -1))]),
        ("float32 >= 0.1", [("float32", float(np.float32(0.1)), np.inf)]),
    ],
)
def test_intervals_of_columns(text: str, intervals: list[Any]) -> None:
    parser = IntervalParser(SCHEMA)
    assert parser([text]) == parser([text]) == [tuple(intervals)]


@pytest.mark.parametrize(
    "text",
    [
        "int64", "flag and int64 < 3", "int64 < 3 or int8 < 3", "not int64 < 3", "int64 != 3",
        "int64 in [3]", "text == '3'", "text < 3", "uint64 < 3", "other < 3", "class < 3",
        "int64 < int8", "int64 < 3 # 5", "int64 < 1e3", "int64 < 1_000", "int64 < 007",
        "int64 < 12345678901234567890", "int64 < --3", "int64 < - 3", "3 < 4", "", "# < int64",
        "`a 1 b` < 3", "int64 < 3 < 4", "2 < 3 < int64",
    ],
)  # fmt: skip
def test_other_filters_are_left_to_the_parser(text: str) -> None:
    assert IntervalParser(SCHEMA)([text]) == [None]
    assert IntervalParser(SCHEMA)([text] * 3) == [None] * 3


@given(st.lists(_ranges(), max_size=4), st.integers(1, 3))
def test_texts_are_parsed_together_as_alone(texts: list[str], repeats: int) -> None:
    parser = IntervalParser(SCHEMA)
    alone = [parser([text])[0] for text in texts * repeats]
    assert parser(texts * repeats) == alone


def test_texts_that_differ_in_their_numbers() -> None:
    texts = [f"{low} <= int64 < {low + 2.5} and float64 > {low}" for low in range(3)]
    texts += ["int64 < 3\0", "\0", "", "int64 < 3"]
    parser = IntervalParser(SCHEMA)
    assert parser(texts[:3]) == [
        (("int64", low, low + 2), ("float64", np.nextafter(low, 9), np.inf)) for low in range(3)
    ]
    assert parser(texts) == [parser([text])[0] for text in texts]
