import datetime
import itertools
import operator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError
from raysys.index._filter import Filter

ROWS = pa.table(
    {
        "id": pa.array([10, 11, 12, 13, 14]),
        "year": pa.array([1984, 1994, None, 2004, 1994], pa.int16()),
        "score": pa.array([0.1, 2.0, -1.5, None, float("nan")], pa.float32()),
        "genre": pa.array(["Drama", "War", None, "Dramedy", ""]),
        "seen": pa.array([True, False, None, True, False]),
        "tags": pa.array([["a", "b"], [], None, ["b", None], ["ab"]]),
        "counts": pa.array([[1, 2], [2], None, [], [3]], pa.large_list(pa.int32())),
        "day": pa.array([datetime.date(2020, 1, day) for day in (1, 2, 3, 4, 5)]),
        "at": pa.array([datetime.datetime(2020, 1, 1, hour) for hour in range(5)]),
        "kind": pa.array(["x", "y", None, "x", "z"]).dictionary_encode(),
        "mark": pa.array([1, 2, 3, 2**64 - 1, 2**63], pa.uint64()),
    }
)


def _ids(text: str, rows: pa.Table = ROWS) -> list[int]:
    mask = Filter(text, ROWS.schema).mask(rows)
    assert (mask.dtype, mask.shape) == (bool, (len(rows),))
    return rows["id"].to_numpy()[mask].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year == 1994", [11, 14]),
        ("year != 1994", [10, 13]),
        ("year < 1994", [10]),
        ("year <= 1994", [10, 11, 14]),
        ("year > 1994", [13]),
        ("year >= 1994", [11, 13, 14]),
        ("1994 > year", [10]),
        ("1994 <= year", [11, 13, 14]),
        ("1984 < year < 2004", [11, 14]),
        ("2004 >= year > 1984 != id", [11, 13, 14]),
        ("id == 10 == id", [10]),
        ("year < id", []),
        ("id < year", [10, 11, 13, 14]),
        ("year in [1984, 2004]", [10, 13]),
        ("year in (1984,)", [10]),
        ("year in {1984.0, 1994.5, 70000, 1e300, -5}", [10]),
        ("year not in [1984]", [11, 13, 14]),
        ("year in []", []),
        ("year not in []", [10, 11, 13, 14]),
        ("year is None", [12]),
        ("year is not None", [10, 11, 13, 14]),
        ("not year is None", [10, 11, 13, 14]),
        ("year == 1994.5", []),
        ("year < 1e999", [10, 11, 13, 14]),
        ("year > 70000 or year < -70000", []),
        ("score == 0.1", [10]),
        ("score in [0.1]", [10]),
        ("score <= 0.1", [10, 12]),
        ("score > -2", [10, 11, 12]),
        ("score != 2", [10, 12, 14]),
        ("score > -1_0 and score < 0x1", [10, 12]),
        ("genre == 'Drama'", [10]),
        ("'Drama' == genre", [10]),
        ("genre < 'E'", [10, 13, 14]),
        ("'E' > genre", [10, 13, 14]),
        ("genre in ['War', '']", [11, 14]),
        ("'Dram' in genre", [10, 13]),
        ("'Dram' not in genre", [11, 14]),
        ("'' in genre", [10, 11, 13, 14]),
        ("genre is None", [12]),
        ("'a' in tags", [10]),
        ("'b' in tags", [10, 13]),
        ("'a' not in tags", [11, 13, 14]),
        ("tags is None", [12]),
        ("2 in counts", [10, 11]),
        ("seen", [10, 13]),
        ("not seen", [11, 14]),
        ("seen == True", [10, 13]),
        ("seen in [False]", [11, 14]),
        ("day >= '2020-01-04'", [13, 14]),
        ("'2020-01-02' < day < '2020-01-04'", [12]),
        ("day in ['2020-01-01', '2020-01-05']", [10, 14]),
        ("at > '2020-01-01T03:00:00'", [14]),
        ("kind == 'x'", [10, 13]),
        ("kind in ['x', 'z', 'none']", [10, 13, 14]),
        ("'x' in kind", [10, 13]),
        ("kind is None", [12]),
        ("mark < 5", [10, 11, 12]),
        ("mark > -1", [10, 11, 12, 13, 14]),
        ("mark == 18446744073709551615", [13]),
        ("mark in [-1, 2, 9223372036854775808]", [11, 14]),
        ("mark > id", [13, 14]),
        ("True", [10, 11, 12, 13, 14]),
        ("False", []),
        ("not False and id > 12", [13, 14]),
        ("id > 12 or False", [13, 14]),
        ("id == 10 or id == 11 and id == 12", [10]),
        ("(id == 10 or id == 11) and not (id == 10)", [11]),
        (" \n( id\n==\n10 )  # a comment", [10]),
        ("year == 1994 and genre == 'War' or 'b' in tags and seen", [10, 11, 13]),
    ],
)
def test_a_predicate_selects_its_rows(text: str, expected: list[int]) -> None:
    assert _ids(text) == expected
    # However the rows are cut.
    assert _ids(text, ROWS.slice(2)) == [number for number in expected if number >= 12]
    assert _ids(text, ROWS.take([4, 1, 1])) == [
        number for number in (14, 11, 11) if number in expected
    ]
    chunked = pa.concat_tables([ROWS.slice(0, 2), ROWS.slice(2, 0), ROWS.slice(2)])
    assert _ids(text, chunked) == expected
    assert _ids(text, ROWS.slice(0, 0)) == []


TRUTH = {"t": True, "f": False, "n": None}
KLEENE = {  # SQL's: what left and right give for and, or
    ("t", "t"): (True, True),
    ("t", "f"): (False, True),
    ("t", "n"): (None, True),
    ("f", "t"): (False, True),
    ("f", "f"): (False, False),
    ("f", "n"): (False, None),
    ("n", "t"): (None, True),
    ("n", "f"): (False, None),
    ("n", "n"): (None, None),
}


@pytest.mark.parametrize("kind", ["boolean", "number", "text"])
@pytest.mark.parametrize(("left", "right"), itertools.product("tfn", repeat=2))
def test_nulls_follow_kleene_logic(kind: str, left: str, right: str) -> None:
    makes = {"boolean": bool, "number": int, "text": str}
    test = {"boolean": "{}", "number": "{} > 0", "text": "{} == 'True'"}[kind]
    table = pa.table(
        {
            name: pa.array(
                [None if TRUTH[value] is None else makes[kind](TRUTH[value])],
                {"boolean": pa.bool_(), "number": pa.int64(), "text": pa.string()}[kind],
            )
            for name, value in (("left", left), ("right", right))
        }
    )
    sides = test.format("left"), test.format("right")
    for word, expected in zip(("and", "or"), KLEENE[left, right], strict=True):
        joined = f" {word} ".join(sides)
        assert Filter(joined, table.schema).mask(table).tolist() == [expected is True]
        assert Filter(f"not ({joined})", table.schema).mask(table).tolist() == [expected is False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "yaer == 1",
        "year = 1990",
        "year ==",
        "year",
        "year + 1 == 2",
        "-year == 2",
        "year == -(-1)",
        "year == None",
        "None",
        "year is 1",
        "year is year",
        "None is year",
        "1 < 2",
        "1 < 2 < year",
        "year in 5",
        "year in 'abc'",
        "year in [year]",
        "year in [None]",
        "year in ['a']",
        "id in year",
        "'a' in year",
        "5 in year",
        "5 in genre",
        "'a' in counts",
        "year == 'old'",
        "genre == 5",
        "genre < year",
        "tags == 'a'",
        "day == 'yesterday'",
        "at > 'x'",
        "seen < 'a'",
        "len(genre) > 2",
        "genre.upper == 'A'",
        "tags[0] == 'a'",
        "year if seen else id",
        "lambda: 1",
        "[id]",
        "(id > 1, id > 2)",
        "f'{id}' == 'a'",
        "genre == b'War'",
        "year == 1j",
        "year == ...",
        "year > 1; id",
        "year > 1\nid > 1",
        "import os",
        "__import__('os').system('true') == 0",
        "year := 1",
        "\0",
        "\ud800",
        "1" * 5000 + " == id",
        "id == " + "9" * 100,
        "id == " + "-" * 50_000 + "1",
        "+".join(["id"] * 100_000),
        "not " * 101 + "seen",
        "not " * 100_000 + "seen",
        "(" * 1000 + "seen" + ")" * 1000,
        "[" * 100_000,
        "seen or " * 200_000 + "seen",
    ],
)
def test_an_unsupported_predicate_is_refused_with_the_columns(text: str) -> None:
    with pytest.raises(DataError) as caught:
        Filter(text, ROWS.schema)
    message = str(caught.value)
    assert "Columns: id, year, score, genre" in message
    assert text[:100].strip()[:20] in message.replace("\\\\", "\\") or not text.isprintable()
    assert len(message) < 1500


@pytest.mark.parametrize("text", [5, None, b"id > 1", ["id > 1"], True])
def test_a_filter_must_be_a_string(text: Any) -> None:
    with pytest.raises(DataError, match="a filter must be a string"):
        Filter(text, ROWS.schema)


ODD = pa.table({
    "id": pa.array([1, 2, 3]),
    "class": pa.array(["a", "b", "`a`"]),
    "from": pa.array([1, 2, None]),
    "release-year": pa.array([1984, 1994, 2004]),
    "two words": pa.array([True, False, True]),
    "\ufb01eld": pa.array([1, 2, 3]),  # a ligature, which Python reads as "field"
    "caf\u0065\u0301": pa.array([1, 2, 3]),  # e with a combining accent
    "None": pa.array([1, 2, 3]),
})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`class` == 'a'", [1]),
        ("`class` == '`a`'", [3]),
        ('`class` in ["`a`", "b"]', [2, 3]),
        ("`from` is None", [3]),
        ("1990 <= `release-year` < 2000", [2]),
        ("1994<=`release-year`and`from`==2", [2]),
        ("`two words` and not `release-year` == 1984", [3]),
        ("`\ufb01eld` == 2", [2]),
        ("\ufb01eld == 2", [2]),
        ("field == 2", [2]),
        ("caf\u00e9 == 3", [3]),
        ("`caf\u00e9` == 3", [3]),
        ("`None` == 1", [1]),
        ("`id` == 1", [1]),
    ],
)
def test_columns_of_any_name_are_quoted(text: str, expected: list[int]) -> None:
    assert ODD["id"].to_numpy()[Filter(text, ODD.schema).mask(ODD)].tolist() == expected


@pytest.mark.parametrize("text", ["`no such` == 1", "``", "`id` == `", "class == 'a'"])
def test_an_unknown_or_open_quoted_name_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"unknown column '(no such)?'|invalid syntax"):
        Filter(text, ODD.schema)


def test_the_deepest_accepted_nesting_is_evaluated() -> None:
    assert _ids("not " * 100 + "seen") == [10, 13]
    assert _ids("(" * 100 + "id > 12" + ")" * 100) == [13, 14]
    nested = "id == 12"
    for _ in range(45):
        nested = f"not ({nested} and id < 13)"
    assert _ids(nested) in ([12], [10, 11, 13, 14])


def test_long_lists_and_chains_are_evaluated() -> None:
    assert _ids("id in [" + ",".join(map(str, range(13, 5_000))) + "]") == [13, 14]
    assert _ids("id in [" + ",".join(map(str, range(-5_000, 0))) + ", 14]") == [14]
    assert _ids(" or ".join(f"id == {number}" for number in range(13, 141))) == [13, 14]
    assert _ids("id != " + " != id != ".join(map(str, range(100)))) == []


def test_ids_and_constants_of_any_size_are_compared_exactly() -> None:
    big = 2**60 + 1
    rows = pa.table({"id": [big, big + 1, -big], "x": pa.array([1.5, None, 2.5])})

    def mask(text: str) -> list[bool]:
        return Filter(text, rows.schema).mask(rows).tolist()

    for extra in ("", " or 'a' in t"):
        rows = rows.select(["id", "x"]).append_column("t", pa.array(["b", "b", "b"]))
        assert mask(f"id == {big}{extra}") == [True, False, False]
        assert mask(f"id in [{big}, 2.0]{extra}") == [True, False, False]
        assert mask(f"id == {2**60}.0{extra}") == [False, False, False]
        assert mask(f"id > 1.5{extra}") == [True, True, False]
        assert mask(f"id < 1e19{extra}") == [True, True, True]
        assert mask(f"id < {2**63}{extra}") == [True, True, True]
        assert mask(f"id > x{extra}") == [True, False, False]


def test_timestamps_are_compared_in_their_time_zone() -> None:
    at = pa.array([datetime.datetime(2020, 1, 1, 12)], pa.timestamp("us", "UTC"))
    rows = pa.table({"at": at})
    assert Filter("at >= '2020-01-01T13:00:00+01:00'", rows.schema).mask(rows).tolist() == [True]
    assert Filter("at > '2020-01-01T12:00:00Z'", rows.schema).mask(rows).tolist() == [False]


# --- against an evaluator in plain Python, row by row ---

NUMBERS = st.sampled_from([-3, 0, 1, 2, 300, 0.5, 1.0, 2.5, -0.5, 1e20])
KINDS = {
    "a": pa.int64(), "b": pa.int8(), "c": pa.float64(), "d": pa.float32(), "e": pa.uint64(),
}  # fmt: skip
VALUES = {
    "a": st.sampled_from([-3, 0, 1, 2, 2**53 + 1]),
    "b": st.sampled_from([-3, 0, 1, 2]),
    "c": st.sampled_from([-0.5, 0.5, 1.0, 2.5, float("nan"), float("inf")]),
    "d": st.sampled_from([-0.5, 0.5, 1.0, 2.5, float("nan")]),
    "e": st.sampled_from([0, 1, 2, 2**64 - 1]),
    "t": st.sampled_from(["", "x", "xy", "y"]),
    "u": st.booleans(),
    "l": st.lists(st.sampled_from(["x", "y", None]), max_size=2),
}
COMPARE = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@st.composite
def _comparison(draw: Any) -> tuple:
    kinds = ["constant", "mirrored", "columns", "chain", "in", "not in"]
    kinds += ["null", "text", "part", "element", "truth", "constant truth", "texts"]
    kind = draw(st.sampled_from(kinds))
    names, signs = st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(COMPARE))
    match kind:
        case "constant" | "mirrored":
            return kind, draw(names), draw(signs), draw(NUMBERS)
        case "columns":
            return kind, draw(names), draw(signs), draw(names)
        case "chain":
            return kind, draw(NUMBERS), draw(signs), draw(names), draw(signs), draw(NUMBERS)
        case "in" | "not in":
            return kind, draw(names), draw(st.lists(NUMBERS, max_size=3))
        case "null":
            return kind, draw(st.sampled_from(sorted(VALUES))), draw(st.booleans())
        case "text":
            return kind, draw(signs), draw(VALUES["t"])
        case "part" | "element":
            return kind, draw(st.sampled_from(["x", "y"])), draw(st.booleans())
        case "texts":
            return kind, draw(st.lists(VALUES["t"], max_size=2))
        case _:
            return kind, draw(st.booleans())


def _predicates() -> Any:
    return st.recursive(
        _comparison(),
        lambda inner: st.one_of(
            st.tuples(st.just("not"), inner),
            st.tuples(st.sampled_from(["and", "or"]), inner, inner),
        ),
        max_leaves=6,
    )


def _text(tree: tuple) -> str:
    match tree:
        case ("not", inner):
            return f"not ({_text(inner)})"
        case ("and" | "or" as word, left, right):
            return f"({_text(left)}) {word} ({_text(right)})"
        case ("constant" | "columns", name, sign, other):
            return f"{name} {sign} {other}"
        case ("mirrored", name, sign, number):
            return f"{number} {sign} {name}"
        case ("chain", low, first, name, second, high):
            return f"{low} {first} {name} {second} {high}"
        case ("in" | "not in" as word, name, numbers):
            return f"{name} {word} {numbers}"
        case ("null", name, is_null):
            return f"{name} is {'' if is_null else 'not '}None"
        case ("text", sign, value):
            return f"t {sign} {value!r}"
        case ("texts", values):
            return f"t in {values}"
        case ("part" | "element" as kind, value, negated):
            return f"{value!r} {'not ' if negated else ''}in {'t' if kind == 'part' else 'l'}"
        case ("truth", negated):
            return "not u" if negated else "u"
        case ("constant truth", value):
            return str(value)
    raise AssertionError(tree)


def _compared(left: Any, sign: str, right: Any) -> bool | None:
    return None if left is None or right is None else COMPARE[sign](left, right)


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _all(*values: bool | None) -> bool | None:
    return False if False in values else None if None in values else True


def _true(tree: tuple, row: dict[str, Any]) -> bool | None:
    match tree:
        case ("not", inner):
            return _not(_true(inner, row))
        case ("and", left, right):
            return _all(_true(left, row), _true(right, row))
        case ("or", left, right):
            return _not(_all(_not(_true(left, row)), _not(_true(right, row))))
        case ("constant", name, sign, number):
            return _compared(row[name], sign, number)
        case ("mirrored", name, sign, number):
            return _compared(number, sign, row[name])
        case ("columns", name, sign, other):
            left, right = row[name], row[other]
            if isinstance(left, float) != isinstance(right, float):  # in doubles, as in SQL
                left, right = (None if side is None else float(side) for side in (left, right))
            return _compared(left, sign, right)
        case ("chain", low, first, name, second, high):
            return _all(_compared(low, first, row[name]), _compared(row[name], second, high))
        case ("in", name, numbers):
            return None if row[name] is None else row[name] in numbers
        case ("not in", name, numbers):
            return None if row[name] is None else row[name] not in numbers
        case ("null", name, is_null):
            return (row[name] is None) == is_null
        case ("text", sign, value):
            return _compared(row["t"], sign, value)
        case ("texts", values):
            return None if row["t"] is None else row["t"] in values
        case ("part" | "element" as kind, value, negated):
            holder = row["t" if kind == "part" else "l"]
            return None if holder is None else (value in holder) != negated
        case ("truth", negated):
            return _not(row["u"]) if negated else row["u"]
        case ("constant truth", value):
            return value
    raise AssertionError(tree)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    kinds = KINDS | {"t": pa.string(), "u": pa.bool_(), "l": pa.list_(pa.string())}
    return pa.table({name: pa.array([row[name] for row in rows], kinds[name]) for name in kinds})


WITH_NULLS = st.lists(
    st.fixed_dictionaries({name: st.none() | value for name, value in VALUES.items()}), max_size=6
)


@settings(max_examples=250, deadline=None)
@given(tree=_predicates(), rows=WITH_NULLS)
def test_arrow_agrees_with_plain_python(tree: tuple, rows: list[dict[str, Any]]) -> None:
    table = _table(rows)
    mask = Filter(_text(tree), table.schema).mask(table)
    assert mask.tolist() == [_true(tree, row) is True for row in rows]
