"""Missing values of fields that may be None, on every way that rows come in, without a cluster."""

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from raysys.errors import DataError, GraphError
from raysys.serve import Array, Batching, Graph
from raysys.serve._application import Application
from raysys.serve._batcher import Batcher
from raysys.serve._column_types import of_field
from raysys.serve._outputs import as_outputs
from raysys.serve.http._request_handler import RequestHandler, fail
from raysys.serve.protocols import _arrow
from tests.serve.asynchronous import in_loop


class Patient(BaseModel):
    weight: float | None
    age: Optional[int] = Field(None, ge=0)  # noqa: UP045 - both spellings are written
    smokes: bool | None = None
    name: str | None = None
    pulses: list[float | None] = []
    ward: int = 1


def _seen(
    weight: np.ndarray, age: np.ndarray, smokes: np.ndarray, name: np.ndarray,
    pulses: np.ndarray, ward: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    assert (weight.dtype, age.dtype, smokes.dtype, pulses.dtype) == (np.float64,) * 4
    assert ward.dtype == np.int64
    columns = (weight.tolist(), age.tolist(), smokes.tolist(), name.tolist(), pulses.tolist())
    return [{"seen": repr(row).replace("nan", "None")} for row in zip(*columns, strict=True)]


GRAPH = Graph(inputs=Patient, nodes={"seen": _seen}, output="seen")
MISSING = {"weight": None, "age": None, "smokes": None, "name": None, "pulses": [1.0, None]}
PRESENT = {"weight": 70.5, "age": 40, "smokes": True, "name": "Ann", "pulses": [1.0, 2.0]}
ANSWERS = ["(None, None, None, None, [1.0, None])", "(70.5, 40.0, 1.0, 'Ann', [1.0, 2.0])"]


async def ask(
    action: str, body: bytes, headers: Mapping[bytes, bytes], graph: Graph = GRAPH
) -> Any:
    """Status and body of the response to a request."""
    application = Application(
        "patients", 1, "/patients", {"": graph}, Batching(), 5.0, 10_000, 0.0, {}, protected=False,
        token="t",
    )  # fmt: skip

    async def run(columns: Any, _: Any, *, alone: bool) -> Any:
        value = graph(columns)
        return as_outputs(graph.output, value, len(next(iter(columns.values()))))

    handler = RequestHandler(application, "", Batcher(run, graph.inputs, Batching()), None)
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def respond(status: int, kind: str, body: bytes, headers: Any = None) -> None:
        answer.set_result((status, body))

    try:
        getattr(handler, action)(dict(headers), body, respond)
    except Exception as error:
        fail(error, dict(headers), respond)
    return await answer


@in_loop
async def test_null_in_json_is_a_missing_value() -> None:
    for row, expected in zip((MISSING, PRESENT), ANSWERS, strict=True):
        status, body = await ask("predict", json.dumps(row).encode(), {})
        assert (status, json.loads(body)["seen"]) == (200, expected)
    status, body = await ask("predict", b'{"weight": null}', {})
    assert json.loads(body)["seen"] == "(None, None, None, None, [])"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ward": None}, "ward"),
        ({"age": -1}, "age"),
        ({"weight": "x"}, "weight"),
        ({"age": 2**53 + 1}, "age: integers beyond 2**53"),
        ({"pulses": None}, "pulses"),
    ],
)
@in_loop
async def test_what_a_field_does_not_take_is_refused_still(change: Any, text: str) -> None:
    status, body = await ask("predict", json.dumps({**PRESENT, **change}).encode(), {})
    assert status == 422
    assert text in json.loads(body)["error"]


def tensors(rows: list[dict[str, Any]]) -> bytes:
    kinds = {"weight": "FP64", "age": "FP64", "smokes": "FP64", "name": "BYTES", "pulses": "FP64"}
    inputs = [
        {"name": name, "datatype": kind, "data": [row[name] for row in rows],
         "shape": [len(rows), 2] if name == "pulses" else [len(rows)]}
        for name, kind in kinds.items()
    ]  # fmt: skip
    inputs[2]["data"] = [None if row["smokes"] is None else int(row["smokes"]) for row in rows]
    ward = {"name": "ward", "datatype": "INT64", "shape": [len(rows)], "data": [1] * len(rows)}
    inputs.append(ward)
    return json.dumps({"inputs": inputs}).encode()


@in_loop
async def test_null_in_a_tensor_of_json_is_a_missing_value() -> None:
    status, body = await ask("infer", tensors([MISSING, PRESENT]), {})
    assert status == 200, body
    rows = json.loads(body)["outputs"][0]["data"]
    assert [json.loads(row)["seen"] for row in rows] == ANSWERS
    without = tensors([MISSING, PRESENT]).replace(b"[1, 1]", b"[1, null]")
    status, body = await ask("infer", without, {})
    assert status == 400
    assert "ward" in json.loads(body)["error"]


def test_nulls_of_arrow_are_missing_values() -> None:
    table = pa.Table.from_pylist([{**MISSING, "ward": 1}, {**PRESENT, "ward": 2}])
    for changed in (
        table,
        table.set_column(3, "name", table["name"].dictionary_encode()),
        table.set_column(0, "weight", table["weight"].cast(pa.float32())),
    ):
        rows = GRAPH(_arrow.from_table(changed, GRAPH.inputs))
        assert [row["seen"] for row in rows] == ANSWERS
    empty = pa.Table.from_pylist([{**MISSING, "ward": 1}])  # columns of type null
    assert GRAPH(_arrow.from_table(empty, GRAPH.inputs))[0]["seen"] == ANSWERS[0]
    large = table.set_column(1, "age", pa.array([None, 2**53 + 1]))
    with pytest.raises(DataError, match="age"):
        _arrow.from_table(large, GRAPH.inputs)
    without = table.set_column(5, "ward", pa.array([None, 1]))
    with pytest.raises(DataError, match="ward: 1 nulls"):
        _arrow.from_table(without, GRAPH.inputs)


@in_loop
async def test_nulls_of_an_arrow_request_are_missing_values() -> None:
    table = pa.Table.from_pylist([{**MISSING, "ward": 1}, {**PRESENT, "ward": 2}])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {b"content-type": _arrow.MEDIA_TYPE.encode()}
    status, body = await ask("predict", sink.getvalue().to_pybytes(), headers)
    assert status == 200, body
    rows = pa.ipc.open_stream(body).read_all().column(0).to_pylist()
    assert [row["seen"] for row in rows] == ANSWERS


def test_none_in_a_call_is_a_missing_value() -> None:
    batch = {name: [MISSING[name], PRESENT[name]] for name in MISSING} | {"ward": [1, 1]}
    assert [row["seen"] for row in GRAPH(batch)] == ANSWERS
    with pytest.raises(DataError, match="weight: expected numbers or null"):
        GRAPH({**batch, "weight": ["x", None]})
    with pytest.raises(DataError, match="weight: values that are not finite"):
        GRAPH({**batch, "weight": [math.inf, None]})


@in_loop
async def test_a_column_may_be_nullable_without_a_model() -> None:
    inputs = {"x": Array("float32", nullable=True), "y": Array("float32")}
    graph = Graph(inputs=inputs, nodes={"sum": lambda x, y: np.nan_to_num(x) + y}, output="sum")
    assert "x: float32[n] or null" in repr(graph)
    status, body = await ask("predict", b'{"x": null, "y": 2}', {}, graph)
    assert (status, json.loads(body)) == (200, {"sum": 2.0})
    status, body = await ask("predict", b'{"x": 1, "y": null}', {}, graph)
    assert status == 422
    assert "y" in json.loads(body)["error"]


def test_a_type_says_whether_values_may_be_missing() -> None:
    assert of_field("x", float | None) == Array("float64", (), nullable=True)
    assert of_field("x", str | None) == Array("str", (), nullable=True)
    assert of_field("x", list[list[int | None]]) == Array("float64", (None, None), nullable=True)
    for annotation in (list[float] | None, int | str, int | str | None, type(None), dict | None):
        with pytest.raises(GraphError, match="field 'x' of the request"):
            of_field("x", annotation)
    with pytest.raises(GraphError, match="int64 has no missing values: use float64"):
        Array("int64", nullable=True)
    some, none = Array("float64", nullable=True), Array("float64")
    assert none.fits(some)
    assert not some.fits(none)
