from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from raysys.errors import GraphError
from raysys.serve import Graph


def test_each_node_runs_once_after_what_it_needs() -> None:
    ran: list[str] = []

    def base(x: np.ndarray) -> np.ndarray:
        ran.append("base")
        return x + 1

    def left(base: np.ndarray) -> np.ndarray:
        ran.append("left")
        return base * 10

    def right(x: np.ndarray, base: np.ndarray) -> np.ndarray:
        ran.append("right")
        return base * x

    def answer(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        ran.append("answer")
        return left - right

    nodes = {node.__name__: node for node in (answer, right, left, base)}
    graph = Graph(inputs=["x"], nodes=nodes, output="answer")
    np.testing.assert_array_equal(graph({"x": np.array([1, 2])}), [18, 24])
    assert (ran[0], ran[-1]) == ("base", "answer")
    assert sorted(ran[1:3]) == ["left", "right"]


def test_nodes_that_the_output_does_not_need_are_not_run() -> None:
    def unwanted(x: int) -> int:
        raise AssertionError("ran")

    nodes = {
        "double": lambda x: 2 * x,
        "unwanted": unwanted,
        "after_output": lambda double, unwanted: double,
    }
    assert Graph(inputs=["x"], nodes=nodes, output="double")({"x": 4}) == 8


def test_columns_beyond_the_inputs_are_let_be() -> None:
    graph = Graph(inputs=["x"], nodes={"double": lambda x: 2 * x}, output="double")
    assert graph({"x": 4, "double": 0}) == 8


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"a": lambda b: b, "b": lambda c: c, "c": lambda a: a}, r"circle: \[('[abc]',? ?){4}\]"),
        ({"a": lambda a: a}, r"circle: \['a', 'a'\]"),
        ({"a": lambda x, usr, itm: x}, r"node 'a' needs \['usr', 'itm'\].*\['x'\].*\['a'\]"),
        ({"b": lambda x: x}, r"output 'a' is not a node; nodes are \['b'\]"),
    ],
    ids=["circle", "self", "missing name", "unknown output"],
)
def test_an_ill_formed_graph_is_refused_by_name(
    nodes: dict[str, Callable[..., Any]], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        Graph(inputs=["x"], nodes=nodes, output="a")
