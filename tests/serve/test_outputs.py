import itertools
from typing import Any

import numpy as np
import pytest

from raysys.errors import GraphError
from raysys.serve import Array
from raysys.serve._outputs import (
    as_outputs,
    concat_outputs,
    output_columns,
    output_types,
    slice_outputs,
)


def test_an_array_is_a_column_by_the_name_of_its_node() -> None:
    value = np.zeros((3, 2))
    answers = as_outputs("score", value, 3)
    assert isinstance(answers, dict)
    assert list(answers) == ["score"]
    assert answers["score"] is value


def test_a_dict_is_columns_and_tuples_in_it_become_arrays_but_lists_stay() -> None:
    answers = as_outputs("y", {"a": (1, 2), "b": [{"k": 1}, {"k": 2}], "c": np.zeros(2)}, 2)
    assert isinstance(answers, dict)
    assert answers["a"].tolist() == [1, 2]
    assert answers["b"] == [{"k": 1}, {"k": 2}]
    assert isinstance(answers["c"], np.ndarray)


def test_a_list_is_rows() -> None:
    rows = [{"k": 1}, {"k": 2}]
    assert as_outputs("y", rows, 2) == rows


@pytest.mark.parametrize("value", [3.0, "text", None, (1, 2), np.array(1), np.float32(1)])
def test_another_kind_of_value_is_refused_with_its_node_and_its_kind(value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(
        GraphError, match=rf"the output node 'y' returned a {kind}: return an array"
    ):
        as_outputs("y", value, 1)


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (np.zeros(3), r"{'y': 3}"),
        ([1], r"{'y': 1}"),
        ({"a": np.zeros(2), "b": [1]}, r"{'a': 2, 'b': 1}"),
        ({}, r"{}"),
    ],
)
def test_another_number_of_rows_is_refused_with_both_numbers(value: Any, given: str) -> None:
    with pytest.raises(GraphError, match=rf"the output node 'y' returned {given} rows for 2"):
        as_outputs("y", value, 2)


def test_a_column_that_is_one_value_is_refused_by_its_node() -> None:
    with pytest.raises(GraphError, match="'y'"):
        as_outputs("y", {"a": 3}, 1)


def test_rows_are_one_column_by_the_name_of_the_node() -> None:
    assert output_columns("y", [1, 2]) == {"y": [1, 2]}
    columns = {"a": [1], "b": [2]}
    assert output_columns("y", columns) == columns


@pytest.mark.parametrize(
    "answers",
    [
        [{"k": row} for row in range(5)],
        {"a": np.arange(10).reshape(5, 2), "b": [str(row) for row in range(5)]},
    ],
    ids=["rows", "columns"],
)
@pytest.mark.parametrize("cuts", [[0, 5], [0, 2, 5], [0, 1, 2, 3, 4, 5], [0, 0, 5]])
def test_slices_joined_are_what_was_sliced(answers: Any, cuts: list[int]) -> None:
    joined = concat_outputs([slice_outputs(answers, *pair) for pair in itertools.pairwise(cuts)])
    assert type(joined) is type(answers)
    if isinstance(answers, list):
        assert joined == answers
    else:
        assert isinstance(joined, dict)
        np.testing.assert_array_equal(joined["a"], answers["a"])
        assert joined["b"] == answers["b"]


def test_types_of_columns_are_their_dtypes_and_else_text() -> None:
    answers: Any = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.zeros(2, bool),
        "c": np.array(["x", "y"]),
        "d": [{"k": 1}, {"k": 2}],
    }
    assert output_types("y", answers) == {
        "a": Array("float32", (3,)),
        "b": Array("bool"),
        "c": Array("str"),
        "d": Array("str"),
    }
    assert output_types("y", [{"k": 1}]) == {"y": Array("str")}
