import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import ray

from raysys.data import Lineage, Table, read, read_lineage
from raysys.data._lineage import code_of, plain
from raysys.storage import Storage

_IN_TWO_PROCESSES = """
import polars as pl
from raysys.data._lineage import Lineage, code_of, plain
def function(block, kinds=("a", "b")):
    return block if block in {"one", "two", "three"} else len(kinds)
class Given:
    pass
said = {"set": {"x", "y", "z"}, "expr": pl.col("a").is_in(list(range(50))), "object": Given(),
        "list": [{"q": {"s", "t"}}]}
print(Lineage("map", plain(said), (), code_of(function)).id)
"""


def test_the_id_is_the_same_in_every_process() -> None:
    ids = {
        subprocess.run(
            [sys.executable, "-c", _IN_TWO_PROCESSES],
            env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(ids) == 1
    assert len(ids.pop().strip()) == 16


def _closing_over(value: Any) -> Callable[..., Any]:
    return lambda block: (block, value)


def _default(value: Any) -> Callable[..., Any]:
    def function(block: Any, factor: Any = value) -> Any:
        return block, factor

    return function


class _Called:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, block: Any) -> Any:
        return block, self.value

    def method(self, block: Any) -> Any:
        return block, self.value


_MAKERS: list[Callable[[Any], Any]] = [
    _closing_over,
    _default,
    lambda value: functools.partial(_closing_over, value),
    lambda value: functools.partial(_closing_over, value=value),
    _Called,
    lambda value: _Called(value).method,
    lambda value: _closing_over(_closing_over(value)),
]


@pytest.mark.parametrize("made", _MAKERS)
@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), ("a", "b"), ([1], [2]), ({"k": 1}, {"k": 2}), (np.arange(5000), -np.arange(5000))],
    ids=["numbers", "text", "lists", "dicts", "arrays"],
)
def test_what_a_function_holds_is_part_of_its_code(
    made: Callable[[Any], Any], one: Any, other: Any
) -> None:
    assert code_of(made(one)) == code_of(made(one))
    assert code_of(made(one)) != code_of(made(other))


def test_another_body_is_another_code() -> None:
    codes = {
        code_of(function)
        for function in (
            lambda b: b + 1, lambda b: b + 2, lambda b: b - 1, lambda b: b.one, lambda b: b.two,
            lambda b: [x + 1 for x in b], lambda b: [x + 2 for x in b],
        )
    }  # fmt: skip
    assert len(codes) == 7


def test_a_function_may_close_over_itself() -> None:
    def count(left: int) -> int:
        return count(left - 1) if left else 0

    assert code_of(count) == code_of(count)


def test_long_parameters_are_told_apart() -> None:
    assert plain("x" * 5000 + "a") != plain("x" * 5000 + "b")
    assert len(plain("x" * 5000)) < 1100
    lists = [list(range(100)), [*range(50), -1, *range(51, 100)]]
    expressions = [plain(pl.col("a").is_in(values)) for values in lists]
    assert str(pl.col("a").is_in(lists[0])) == str(pl.col("a").is_in(lists[1]))
    assert expressions[0] != expressions[1]
    tables = [plain(pa.table({"a": values})) for values in lists]
    assert tables[0] != tables[1]


def test_a_chain_may_be_long() -> None:
    last = Lineage("first")
    for number in range(1500):
        last = Lineage("step", {"n": number}, (last,))
    back = ray.cloudpickle.loads(ray.cloudpickle.dumps(last))
    assert back.id == last.id
    assert [one.parameters for one in back.chain()] == [one.parameters for one in last.chain()]
    assert len(list(back.chain())) == 1501


def test_each_comes_once_in_a_chain_and_before_its_inputs() -> None:
    first = Lineage("first", rows=3)
    other = Lineage("other", inputs=(first,))
    for both in (Lineage("join", inputs=(other, first)), Lineage("join", inputs=(first, other))):
        back = ray.cloudpickle.loads(ray.cloudpickle.dumps(both))
        for one in (both, back):
            assert [part.operation for part in one.chain()] == ["join", "other", "first"]
        assert [part.operation for part in back.inputs] == [p.operation for p in both.inputs]
        assert sorted(part.rows or 0 for part in back.inputs) == [0, 3]


def test_a_record_learns_but_never_forgets(storage: Storage) -> None:
    known = Lineage("read", {"files": ["a"]}, rows=3, fingerprint="abc")
    known.write(storage)
    last = Lineage("filter", {"p": 1}, (Lineage("read", {"files": ["a"]}),))
    assert last.write(storage) == last.id
    records = read_lineage(storage, last.id)
    assert list(records) == [last.id, known.id]
    assert records[last.id]["inputs"] == [known.id]
    assert (records[known.id]["rows"], records[known.id]["fingerprint"]) == (3, "abc")
    assert read_lineage(storage, "unknown") == {}


@pytest.mark.usefixtures("ray_cluster")
def test_a_tables_lineage_goes_back_to_its_files(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,x\n2,y\n3,x\n")

    def chain(limit: int, options: dict[str, int]) -> Table:
        table = read(tmp_path / "a.csv").filter(pl.col("a") > limit)
        return table.map_blocks(lambda block, _: block, options).aggregate(["b"], n="rows")

    last = chain(1, {"k": 1})
    assert chain(1, {"k": 1}).lineage.id == last.lineage.id
    assert chain(0, {"k": 1}).lineage.id != last.lineage.id
    assert chain(1, {"k": 2}).lineage.id != last.lineage.id
    operations = [one.operation for one in last.lineage.chain()]
    assert operations == ["aggregate", "<lambda>", "filter", "read csv"]
    fingerprint = last.fingerprint()
    records = list(read_lineage(storage, last.lineage.write(storage)).values())
    assert [record["rows"] for record in records][:2] == [2, 2]
    assert records[0]["fingerprint"] == fingerprint
    assert records[-1]["parameters"]["files"][0]["file"] == str(tmp_path / "a.csv")


@pytest.mark.usefixtures("ray_cluster")
def test_the_id_does_not_depend_on_the_blocks() -> None:
    table = pa.table({"a": list(range(10))})
    ids = {Table.from_arrow(table, rows).sort("a").lineage.id for rows in (3, 100)}
    assert len(ids) == 1
