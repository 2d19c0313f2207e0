"""Typed reading of raw CSV, against reading as text."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data import Schema
from raysys.data.readers._csv import CsvOptions, CsvPart
from raysys.data.readers._csv_inspect import inspect
from raysys.data.readers._csv_typed import read_typed
from raysys.data.readers._files import find
from raysys.data.validation import _validate
from raysys.data.validation._row_rules import split_block

SCHEMA = Schema.from_yaml("""
name: odd
columns:
  whole: {type: int8, min: -5, nullable: true}
  wide: {type: uint64}
  real: {type: float32, max: 1000, nullable: true}
  name: {type: string, pattern: '[a-z ]+'}
  moment: {type: 'timestamp[us, UTC]', min: 2000-01-01}
  'yes': {type: bool, nullable: true}
unique: [[wide, name]]
""")
TOKENS = {
    "whole": ["7", " 7", "\t7 ", "-6", "+7", "007", "7.0", "0x1F", "0xFF", "300", "1e3", "", "x"],
    "wide": ["1", "18446744073709551615", "18446744073709551616", "-1", "0xff", "2.0", ""],
    "real": ["1.5", " 1.5", "1e3", "1e39", "inf", "nan", "NaN", ".5", "5.", "0x1p3", "+1", ""],
    "name": ["ab", "a b", " a", "A", "é", "", "x,y"],
    "moment": [
        "2013-01-01T05:06:07Z", "2013-01-01 05:06Z", "2013-01-01T05Z", "2013-01-01",
        "2013-01-01T05:06:07.123456+01:00", "2013-01-01T05:06:07", "2013-02-30T00:00:00Z",
        "1999-12-31T23:59:59Z", "2013-01-01T24:00:00Z", " 2013-01-01T05:06:07Z", "soon", "",
    ],
    "yes": ["true", "False", "1", " 1", "yes", ""],
}  # fmt: skip
NAMES = list(TOKENS)
USUAL = ["7", "1", "1.5", "ab", "2013-01-01T05:06:07Z", "true"]


def _part(folder: Path, rows: list[list[str]]) -> CsvPart:
    path = folder / "odd.csv"
    path.write_text("\n".join(",".join(row) for row in [NAMES, *rows]))
    return inspect(find(path)[0], CsvOptions(raw=True))


def _by_row(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: row["_line"])


def _same(part: CsvPart) -> bool:
    """Whether the part was read typed; the split is then as if all were text."""
    typed = read_typed(part, _validate._arrow_types(SCHEMA))
    slow = split_block(part.read(), SCHEMA)
    if typed is None:
        return False
    fast = split_block(typed.block, SCHEMA, None, typed.texts)
    lines = split_block(typed.malformed, SCHEMA)
    assert not len(lines.valid)
    assert fast.valid.schema == slow.valid.schema
    assert str(_by_row(fast.valid)) == str(_by_row(slow.valid))  # text, since NaN is not NaN
    assert _by_row(pa.concat_tables([fast.bad, lines.bad])) == _by_row(slow.bad)
    examples = {**fast.examples, **lines.examples}
    assert examples == slow.examples
    return True


ROWS = st.lists(st.tuples(*[st.sampled_from(TOKENS[name]) for name in NAMES]), min_size=1)
FEW = st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_odd_values_are_split_as_if_all_were_text(
    tmp_path_factory: Any, rows: list[tuple[str, ...]]
) -> None:
    _same(_part(tmp_path_factory.mktemp("odd"), [list(row) for row in rows]))


@settings(max_examples=60, deadline=None)
@given(st.lists(FEW, max_size=6))
def test_columns_with_one_odd_value_stay_text_the_others_are_typed(
    tmp_path_factory: Any, odd: list[tuple[int, int, int]]
) -> None:
    rows = [[USUAL[0], str(n), *USUAL[2:]] for n in range(41)]
    for column, token, row in odd:
        choices = TOKENS[NAMES[column]]
        rows[row][column] = choices[token % len(choices)]
    assert _same(_part(tmp_path_factory.mktemp("few"), rows))


def test_columns_that_convert_are_typed_and_malformed_lines_are_separate(tmp_path: Path) -> None:
    rows = [list(USUAL) for _ in range(5)]
    rows[1] = ["7", "1"]
    rows[3][0] = "seven"
    typed = read_typed(_part(tmp_path, rows), _validate._arrow_types(SCHEMA))
    assert typed is not None
    assert str(typed.block.schema.field("wide").type) == "uint64"
    assert str(typed.block.schema.field("whole").type) == "large_string"
    assert typed.block["_line"].to_pylist() == [2, 4, 5, 6]
    assert typed.malformed.select(["wide", "_line", "_malformed"]).to_pylist() == [
        {"wide": None, "_line": 3, "_malformed": "7,1"}
    ]
    written = typed.texts(np.array([2, 3]))
    assert written["whole"].to_pylist() == ["seven", "7"]
    assert written["_line"].to_pylist() == [5, 6]


def test_quotes_and_empty_lines_are_read_as_text(tmp_path: Path) -> None:
    types = _validate._arrow_types(SCHEMA)
    quoted = [['"7"', *USUAL[1:]]]
    assert read_typed(_part(tmp_path, quoted), types) is None
    assert read_typed(_part(tmp_path, [USUAL, [""], USUAL]), types) is None
    assert read_typed(_part(tmp_path, [USUAL]), types) is not None
