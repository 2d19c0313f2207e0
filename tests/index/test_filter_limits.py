"""Filters that would take a parser or the memory long are refused, and any other is fast."""

import ast
import contextlib
import io
import re
import time
import token as token_types
import tokenize
import tracemalloc
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError
from raysys.index._filter import Filter
from raysys.index._filter_conditions import FilterConditions
from raysys.index._filter_limits import MAX_CHARACTERS, QUOTED, excess
from tests.index.test_filter import ROWS

LONG = MAX_CHARACTERS - 100
HOSTILE = {
    "a megabyte": ("id == 1 or " * 100_000 + "id == 1", "1,100,007 characters"),
    "substrings": (" or ".join(["'a' in genre"] * 45_000), "characters, at most 32,768"),
    "fewer substrings": (" or ".join(["'' in genre"] * (LONG // 15)), "operators, at most 256"),
    "a chain": ("<".join(["id"] * (LONG // 3)), "10,888 operators, at most 256"),
    "a chain of and": ("seen and " * (LONG // 9) + "seen", "operators, at most 256"),
    "nested f-strings": ("f'{" * 100_000 + "1" + "}'" * 100_000, "characters"),
    "an f-string": ("genre == f'" + "{id}" * (LONG // 4) + "'", "formatted strings"),
    "an F-string": ('genre == rF"' + "{id}" * 500 + '"', "formatted strings"),
    "three quotes": ("genre == \'\'\'x\' \'\'\' or " + "id<1 or " * 2000 + "\' \'==genre", "three"),
    "a line's end": ("(genre == 'a' # '\n or " + "id<1 or " * 2000 + "seen # '\n)", "operators"),
    "an escaped line": ("'\\\r\n' in genre or " + "id<1 or " * 2000 + "'' in genre", "operators"),
    "values": ("id in [" + "1," * (LONG // 2) + "]", "16,334 values in lists, at most 5,000"),
    "nested lists": ("[" * (LONG // 2) + "]" * (LONG // 2), "nesting exceeds 100 levels"),
    "brackets of all kinds": ("([{" * 40 + "1", "nesting exceeds 100 levels"),
    "not": ("not " * (LONG // 4) + "seen", "operators, at most 256"),
    "signs": ("id == " + "-" * LONG + "1", "invalid syntax"),
    "arithmetic": ("id == 1" + "-1" * (LONG // 2), "invalid syntax"),
    "calls": ("seen" + "()" * (LONG // 2), "invalid syntax"),
    "attributes": ("seen" + ".a" * (LONG // 2), "invalid syntax"),
    "a long expression": ("id == (" + "()," * 4_900 + ")", "a constant instead of a Tuple"),
    "lambdas": ("lambda:" * (LONG // 7) + "1", "invalid syntax"),
    "conditions": ("id if id else " * (LONG // 14) + "1", "Columns: id"),
    "digits": ("id == " + "9" * LONG, "invalid syntax"),
    "combining marks": ("a" + "\u0301\u0316" * (LONG // 2) + " == 1", "a name of more than 200"),
    "quoted marks": ("`a" + "\u0301\u0316" * (LONG // 2) + "` == 1", "unknown column"),
    "many names": (", ".join(f"`{n}`" for n in range(4_000)), "unsupported expression a Tuple"),
    "strings": ("genre == " + "'' " * (LONG // 3), None),
    "a long string": ("genre == '" + "\\\\" * (LONG // 2) + "'", None),
    "open strings": ("genre == " + "'\\" * (LONG // 2), "invalid syntax"),
    "a long list": ("id in [" + ",".join(map(str, range(-5_000, 1))) + "]", None),
    "a long list of text": ("genre in [" + ",".join(["'a'"] * 5_001) + "]", None),
    "many terms": (" or ".join(["'a' in genre"] * 128), None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_filter_is_refused_or_answered_at_once(name: str) -> None:
    text, reason = HOSTILE[name]
    started = time.thread_time()
    if reason is None:
        Filter(text, ROWS.schema)
    else:
        with pytest.raises(DataError, match=re.escape(reason)) as caught:
            Filter(text, ROWS.schema)
        assert len(str(caught.value)) < 1500
    # 50 ms on a quiet machine; without limits, 8 to 10 s.
    assert time.thread_time() - started < 5


PIECES = [
    "(", ")", "[", "]", "{", "}", "id", "seen", "genre", "'a'", '"', "'", "`", "\\", "\n", "\r",
    "#", "f'", "{", "}", " and ", " or ", " not ", " in ", " is ", "<", "==", "=", ",", "1", "-",
    ".", ":", "lambda ", " if ", " else ", "*", "\u0301", " ",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30), st.integers(1, 60))
def test_any_text_is_refused_or_answered_at_once(pieces: list[str], repeats: int) -> None:
    text = "".join(pieces) * repeats
    started = time.thread_time()
    with contextlib.suppress(DataError):
        Filter(text, ROWS.schema)
    assert time.thread_time() - started < 5


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_strings_and_comments_end_where_python_ends_them(pieces: list[str]) -> None:
    """What a filter consists of outside of them decides its limits."""
    text = "(" + "".join(pieces).replace("`", "") + "\n)"
    with warnings.catch_warnings(), contextlib.suppress(SyntaxError, ValueError, MemoryError):
        warnings.simplefilter("ignore")
        ast.parse(text, mode="eval")
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        words = [
            token.string for token in tokens if token.type in (token_types.NAME, token_types.OP)
        ]
        bare = QUOTED.sub("'", text)
        if not excess(text):
            for word in ("and", "or", "not", "in", "is"):
                assert len(re.findall(rf"\b{word}\b", bare)) >= words.count(word)
            assert bare.count(",") == words.count(",")


def test_compiled_filters_take_a_bounded_memory() -> None:
    conditions = FilterConditions(ROWS.schema)
    texts = [f"genre == '{n:0{LONG}}' or seen" for n in range(45)]
    texts += [f"'a{n}' in genre or " + " or ".join(["'a' in genre"] * 127) for n in range(65)]
    for text in texts:
        conditions.parse([text])
    assert 20 < len(conditions._filters) < 60
    assert conditions._filter_bytes == sum(f.memory_bytes for f in conditions._filters.values())
    assert conditions._filter_bytes <= 16 << 20
    assert list(conditions._filters)[-1] == texts[-1]
    tracemalloc.start()
    Filter(texts[-1], ROWS.schema)
    before = tracemalloc.get_traced_memory()[0]
    compiled = Filter(texts[-1], ROWS.schema)
    assert tracemalloc.get_traced_memory()[0] - before < compiled.memory_bytes
    tracemalloc.stop()


def test_a_long_range_of_numbers_is_left_to_the_parser() -> None:
    conditions = FilterConditions(ROWS.schema)
    short, long = "id < 13", " and ".join(["id < 13"] * 100)
    parsed = conditions.parse([long, short, long])
    assert parsed == {long: None, short: (("id", -(2**63), 12),)}
    assert Filter(long, ROWS.schema).mask(ROWS).tolist() == [True] * 3 + [False] * 2
