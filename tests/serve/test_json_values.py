"""Answers of every kind, in JSON and in the other protocols."""

import base64
import json
import uuid
from collections import Counter, OrderedDict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from pydantic import BaseModel

from raysys.errors import DataError, GraphError
from raysys.serve._json_values import json_bytes
from raysys.serve._outputs import as_outputs
from raysys.serve.http._request_handler import _require_encodable
from raysys.serve.protocols import _arrow
from raysys.serve.protocols import _open_inference as _v2


class Film(BaseModel):
    title: str
    price: Decimal


@dataclass
class Place:
    at: Any


class Level(Enum):
    LOW = 1


Pair = namedtuple("Pair", "a b")
_NS = np.array(["2020-01-02T03:04:05.120000000", "NaT"], "datetime64[ns]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({3: "a", True: "b", None: "c", 2.5: "d"}, '{"3":"a","true":"b","null":"c","2.5":"d"}'),
        ({np.int64(7): {np.str_("x"): 1}}, '{"7":{"x":1}}'),
        ({date(2020, 1, 2): 1, Level.LOW: 2}, '{"2020-01-02":1,"1":2}'),
        (Counter("aab"), '{"a":2,"b":1}'),
        (Decimal("1.10"), "1.10"),
        ([Decimal("12345678901234567890.123"), Decimal("NaN")], "[12345678901234567890.123,null]"),
        (b"\xff\x00", '"/wA="'),
        ([bytearray(b"a"), memoryview(b"a")], '["YQ==","YQ=="]'),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        (np.array(["2020-01-01", "NaT"], "datetime64[D]"), '["2020-01-01",null]'),
        (_NS, '["2020-01-02T03:04:05.12",null]'),
        ([[_NS[0]], np.datetime64("NaT")], '[["2020-01-02T03:04:05.12"],null]'),
        (np.array([[1500, 0]], "timedelta64[ms]"), "[[1.5,0.0]]"),
        ([timedelta(minutes=1), np.timedelta64(2, "m")], "[60.0,120.0]"),
        ([2**70, -(2**63), 2**64 - 1], "[1180591620717411303424,-9223372036854775808,"
         "18446744073709551615]"),
        (np.longdouble(0.5), "0.5"),
        (np.array([0.5], np.longdouble), "[0.5]"),
        (np.asfortranarray([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
        (np.array(["a", b"a", {1}], object), '["a","YQ==",[1]]'),
        (np.array([(1, "x")], [("n", "i8"), ("s", "U1")]), '[{"n":1,"s":"x"}]'),
        (torch.tensor([1.5, 2], requires_grad=True), "[1.5,2.0]"),
        ({"deep": [{5: (torch.tensor(1, dtype=torch.bfloat16), {b"a"})}]},
         '{"deep":[{"5":[1.0,["YQ=="]]}]}'),
        ([Pair(1, 2), deque([1]), range(2), OrderedDict(a=1)], '[[1,2],[1],[0,1],{"a":1}]'),
        ([Film(title="x", price=Decimal("9.90")), Place({1: {2}})],
         '[{"title":"x","price":9.90},{"at":{"1":[2]}}]'),
        ([Path("/a"), uuid.UUID(int=1), datetime(2020, 1, 1, tzinfo=UTC)],
         '["/a","00000000-0000-0000-0000-000000000001","2020-01-01T00:00:00+00:00"]'),
        ([pd.Series([1, 2]), pl.Series([1, 2]), pa.array([1, 2]), pa.scalar(3)],
         "[[1,2],[1,2],[1,2],3]"),
    ],
)  # fmt: skip
def test_values_in_json(value: Any, expected: str) -> None:
    assert json_bytes(value).decode() == expected


def test_missing_and_narrow_numbers_in_json() -> None:
    times = [pd.Timestamp("2020-01-01", tz="UTC"), pd.NaT, pd.NA]
    assert json.loads(json_bytes(times)) == ["2020-01-01T00:00:00+00:00", None, None]
    numbers = [np.int8(1), np.float32(0.1), np.bool_(True), np.float16(2), np.str_("a")]
    assert json_bytes(numbers) == b'[1,0.1,true,2.0,"a"]'
    infinite = [float("nan"), np.inf, np.float64("nan"), np.array([np.nan, -np.inf])]
    assert json_bytes(infinite) == b"[null,null,null,[null,null]]"


@pytest.mark.parametrize(
    "value", [1j, [np.complex64(1)], {(1, 2): 3}, {1: "a", "1": "b"}, object(), {"a": [print]}]
)
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        json_bytes(value)
    with pytest.raises(GraphError, match="the answer of node 'y' cannot be sent"):
        _require_encodable("y", [value])


ANSWERS: dict[str, Any] = {
    "keys": [{1: "a"}, {2: "b"}],
    "decimals": [Decimal("1.10"), Decimal("2")],
    "bytes": [b"\xff", b"a"],
    "byte strings": np.array([b"a", b"bc"]),
    "sets": [{1, 2}, frozenset({3})],
    "times": np.array(["2020-01-01T10", "NaT"], "datetime64[h]"),
    "durations": np.array([1, 2], "timedelta64[s]"),
    "list of times": [np.datetime64("2020-01-01"), np.datetime64("2020-01-02")],
    "tensor": torch.ones(2, 3, requires_grad=True),
    "tensors": [torch.tensor([1, 2]), torch.tensor(3.5)],
    "infinite": np.array([np.nan, np.inf]),
    "wide": np.array([1, 2], np.longdouble),
    "mixed": [1, "a"],
    "ragged": ((1, 2), (3,)),
    "large": [2**70, 1],
    "series": pd.Series(["a", "b"]),
    "nested": [{"a": [{1: {Decimal("1.5")}}]}, {"a": [{"x": b"\xff"}]}],
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_answers_of_every_kind_are_sent_in_every_protocol(name: str) -> None:
    outputs = as_outputs("y", {"y": ANSWERS[name]}, 2)
    assert isinstance(outputs, dict)
    _require_encodable("y", outputs)
    table = pa.ipc.open_stream(_arrow.encode(outputs)).read_all()
    assert len(table) == 2


def test_what_arrow_and_the_open_inference_protocol_say() -> None:
    names = ["keys", "bytes", "sets", "times", "durations", "tensors", "mixed"]
    columns: Any = {name: as_outputs("y", {"y": ANSWERS[name]}, 2)["y"] for name in names}  # type: ignore[call-overload]
    arrow = pa.ipc.open_stream(_arrow.encode(columns)).read_all().to_pydict()
    assert arrow["keys"] == [{"1": "a", "2": None}, {"1": None, "2": "b"}]
    assert arrow["bytes"] == [b"\xff", b"a"]
    assert arrow["sets"] == [[1, 2], [3]]
    assert arrow["mixed"] == ["1", "a"]
    assert arrow["durations"] == [timedelta(seconds=1), timedelta(seconds=2)]
    request = _v2.InferRequest({}, None, None, True)
    body, length = _v2.encode(request, "m", "1", columns)
    tensors = {one["name"]: one for one in json.loads(body[:length])["outputs"]}
    assert {one["datatype"] for one in tensors.values()} == {"BYTES", "FP64"}
    assert b'{"1":"a"}' in body
    assert b"\x01\x00\x00\x00\xff" in body
    with pytest.raises(DataError, match="'bytes' has bytes that are not UTF-8: ask for binary"):
        _v2.encode(_v2.InferRequest({}, None, None, False), "m", "1", columns)
    assert base64.b64decode(json.loads(json_bytes(columns["bytes"]))[0]) == b"\xff"
