"""Arguments of a wrong kind get one sentence: fact, value, remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from raysys.arguments import checked
from raysys.errors import ArgumentError

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train import BoostSettings

FRAME = pd.DataFrame({"x": [1]})


@checked
def work(
    table: Table | None = None, *, settings: BoostSettings | None = None,
    tables: Mapping[str, Table] | None = None, columns: Sequence[str] = (), rows: int = 1,
    rate: float = 0.5, storage: Storage | None = None, block: pa.Table | None = None,
    text: str = "", make: Callable[..., Any] = print, other: Any = None,
) -> int:  # fmt: skip
    return rows


@checked
@dataclass(frozen=True)
class Options:
    size: int = 3
    names: Sequence[str] = ()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: work(FRAME), "work: table is a pandas DataFrame, not a Table: "
         "give Table.from_pandas(table)"),
        (lambda: work(pl.DataFrame()), "table is a polars DataFrame, not a Table: "
         "give Table.from_polars(table)"),
        (lambda: work(pa.table({})), "a pyarrow Table, not a Table: give Table.from_arrow(table)"),
        (lambda: work("x.csv"), "table is the text 'x.csv', not a Table: give read(table)"),
        (lambda: work(settings={"a": 1}), "settings is a dict, not BoostSettings: "
         "give BoostSettings(**settings)"),
        (lambda: work(tables={"train": FRAME}), "tables['train'] is a pandas DataFrame, not"),
        (lambda: work(tables=[1]), "tables is a list, not a dict: give names and values"),
        (lambda: work(columns="age"), "columns is the text 'age', not a list: give ['age']"),
        (lambda: work(columns=["a", 3]), "columns[1] is the number 3, not text"),
        (lambda: work(rows="3"), "rows is the text '3', not a whole number"),
        (lambda: work(rate="x"), "rate is the text 'x', not a number"),
        (lambda: work(storage="/x"), "the text '/x', not a Storage: give Storage(storage)"),
        (lambda: work(text=Path("a.yaml")), "text is the path 'a.yaml', not text: "
         "give text.read_text()"),
        (lambda: work(make=3), "make is the number 3, not a function"),
        (lambda: work(row=3), "work: unknown arguments 'row' (did you mean 'rows'?); "),
        (lambda: work(1, 2), "work: too many positional arguments"),
        (lambda: Options(sise=3), "Options: unknown arguments 'sise' (did you mean 'size'?)"),
        (lambda: Options(names="a"), "Options: names is the text 'a', not a list: give ['a']"),
        (lambda: work(table=Options), "table is the class Options, not a Table"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(text)):
        call()


def test_what_works_is_accepted() -> None:
    assert work(rows=cast("int", np.int64(3)), columns=("a",), rate=1, storage=None) == 3
    assert work(columns=pd.Index(["a"]), make=str, block=pa.table({}), text="x", other="y") == 1
    assert Options(4, ["a"]).size == 4
    assert work.__name__ == "work"
