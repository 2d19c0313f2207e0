"""Fields of a JSON body that no input has, without a cluster."""

from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import BaseModel

from raysys.serve import Array, Batching, Graph
from raysys.serve._application import Application
from raysys.serve.http._request_handler import HTTPStatusError, RequestHandler


class Stone(BaseModel):
    carat: float = 1.0
    cut: str = "fair"


class OpenStone(Stone, extra="ignore"):
    pass


def price(carat: np.ndarray, cut: np.ndarray) -> np.ndarray:
    return carat


class _TakenError(Exception):
    """The row has reached the batcher."""


class _Batcher:
    def submit_row(self, row: Any, *_: Any) -> Any:
        raise _TakenError(row)


def _predict(graph: Graph, body: dict[str, Any], **options: Any) -> None:
    application = Application(
        "stones", 1, "/stones", {"": graph}, Batching(), 1.0, 1000, 0.0, {}, protected=False,
        token="t", **options,
    )  # fmt: skip
    handler = RequestHandler(application, "", _Batcher(), None)  # type: ignore[arg-type]
    handler.predict({}, orjson.dumps(body), lambda *_: None)


def _graph(inputs: Any = None) -> Graph:
    inputs = inputs or {"carat": Array("float64"), "cut": Array("str")}
    return Graph(inputs=inputs, nodes={"price": price}, output="price")


@pytest.mark.parametrize("inputs", [None, Stone])
def test_an_unknown_field_is_refused_with_the_nearest_name(inputs: Any) -> None:
    with pytest.raises(HTTPStatusError) as refused:
        _predict(_graph(inputs), {"carrat": 3.0, "carat": 1.0, "cut": "good"})
    assert refused.value.status == 422
    error = "unknown fields: 'carrat' (did you mean 'carat'?); fields: carat, cut"
    assert refused.value.body["error"] == error
    with pytest.raises(_TakenError):
        _predict(_graph(inputs), {"carat": 1.0, "cut": "good"})


def test_unknown_fields_are_ignored_where_the_application_or_its_model_says_so() -> None:
    body = {"carrat": 3.0, "carat": 2.0, "cut": "good"}
    for graph, options in (
        (_graph(), {"ignore_unknown_fields": True}),
        (_graph(Stone), {"ignore_unknown_fields": True}),
        (_graph(OpenStone), {}),
    ):
        with pytest.raises(_TakenError) as taken:
            _predict(graph, body, **options)
        assert taken.value.args == ((2.0, "good"),)
