import math
import typing
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

from raysys.errors import DataError, GraphError
from raysys.serve import Array
from raysys.serve._column_types import mismatch, of_annotation, of_field, rows_of

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "str",
]  # fmt: skip


def test_an_unknown_dtype_is_refused_by_name() -> None:
    with pytest.raises(GraphError, match=r"'float8' is not one of bool, int8.*str"):
        Array("float8")


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (Array("int64"), "int64[n]"),
        (Array("float32", (64,)), "float32[n, 64]"),
        (Array("str", (2, None)), "str[n, 2, any]"),
    ],
)
def test_an_array_reads_as_its_dtype_and_shape(array: Array, text: str) -> None:
    assert str(array) == text


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_example_of_a_type_passes_its_own_check(dtype: str) -> None:
    array = Array(dtype, (2, None))
    zeros = array.zeros(3)
    assert zeros.shape == (3, 2, 1)
    checked = array.check("x", zeros)
    assert checked.dtype == array.numpy
    np.testing.assert_array_equal(checked, zeros)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", [1, 2]),
        ("float64", np.array([1, 2], np.uint8)),
        ("float64", np.array([1, 2], np.float16)),
        ("float32", np.array([1, 2], np.float64)),
        ("int64", np.array([1, 2], np.int8)),
        ("int8", np.array([1, 2], np.int64)),
        ("uint16", np.array([1, 2], np.int64)),
        ("int64", np.array([1, 2], ">i4")),
        ("bool", [True, True]),
    ],
)
def test_numbers_that_fit_become_the_type_whatever_they_were(dtype: str, values: Any) -> None:
    checked = Array(dtype).check("x", values)
    assert checked.dtype == np.dtype(dtype)
    assert checked.dtype.isnative
    assert checked.tolist() == np.asarray(values).tolist()


def test_strings_arrive_as_objects_of_python() -> None:
    for given in (["a", "ü"], np.array(["a", "ü"]), np.array(["a", "ü"], object)):
        checked = Array("str").check("x", given)
        assert checked.dtype == object
        assert [type(value) for value in checked] == [str, str]
        assert checked.tolist() == ["a", "ü"]


def test_a_checked_array_is_contiguous_and_its_values_are_where_they_were() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    checked = Array("float32", (4,)).check("x", values)
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, values)


def test_an_array_of_the_right_type_is_not_copied() -> None:
    values = np.arange(3, dtype=np.float32)
    assert np.shares_memory(Array("float32").check("x", values), values)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_integers_are_taken_up_to_the_limits_and_not_beyond(dtype: str) -> None:
    limits, array = np.iinfo(dtype), Array(dtype)
    for value in (int(limits.min), int(limits.max)):
        assert array.check("x", [value]).tolist() == [value]
    for value in (int(limits.min) - 1, int(limits.max) + 1):
        with pytest.raises(DataError, match=rf"^x: .*{dtype}"):
            array.check("x", [value])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", 1e39),
        ("float32", -1e39),
        ("float16", 70000),
        ("float16", 70000.0),
        ("float32", math.nan),
        ("float64", math.inf),
        ("float64", -math.inf),
    ],
)
def test_what_is_no_finite_number_in_the_type_is_refused(dtype: str, value: float) -> None:
    with pytest.raises(DataError, match=rf"^x: .*not finite in {dtype}"):
        Array(dtype).check("x", [0.0, value])


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int64", [1.0]),
        ("int64", ["1"]),
        ("float32", ["1"]),
        ("float32", [1j]),
        ("float32", [None]),
        ("bool", [1]),
        ("bool", ["true"]),
        ("int64", np.array([1], "timedelta64[s]")),
        ("float64", np.array([1], "datetime64[s]")),
    ],
)
def test_values_of_another_kind_are_refused_with_both_named(dtype: str, values: Any) -> None:
    given = np.asarray(values).dtype
    with pytest.raises(DataError) as refused:
        Array(dtype).check("price", values)
    assert str(refused.value) == f"price: expected {dtype}, given {given}"


@pytest.mark.parametrize("values", [[1], ["a", None], [b"a"], [["a"], ["b", "c"]]])
def test_what_is_not_strings_is_refused(values: Any) -> None:
    with pytest.raises(DataError, match=r"^x: expected strings"):
        Array("str").check("x", values)


@pytest.mark.parametrize(
    ("shape", "values", "given"),
    [
        ((), [[1]], "(1, 1)"),
        ((), 1, "()"),
        ((2,), [1, 2], "(2,)"),
        ((2,), [[1, 2, 3]], "(1, 3)"),
        ((None,), [1, 2], "(2,)"),
        ((2, None), np.zeros((5, 3, 4), int), "(5, 3, 4)"),
    ],
)
def test_another_shape_is_refused_with_both_named(
    shape: tuple[int | None, ...], values: Any, given: str
) -> None:
    want = ("n", *("any" if side is None else side for side in shape))
    with pytest.raises(DataError) as refused:
        Array("int64", shape).check("x", values)
    assert str(refused.value) == f"x: expected shape {want}, given {given}"


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"^x: rows of unequal length"):
        Array("float32", (None,)).check("x", [[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_number_of_rows_and_any_length_of_a_free_side_is_taken(rows: int) -> None:
    for side in (0, 1, 7):
        values = np.zeros((rows, side), np.float32)
        assert Array("float32", (None,)).check("x", values).shape == (rows, side)


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        (Array("float32", (3,)), Array("float32", (3,)), True),
        (Array("float32", (None,)), Array("float32", (3,)), True),
        (Array("float32", (3, 4)), Array("float32", (3, None)), True),
        (Array("float32", (3,)), Array("float32", (4,)), False),
        (Array("float32", (3,)), Array("float64", (3,)), False),
        (Array("float32", (3,)), Array("float32"), False),
        (Array("float32", (None,)), Array("float32", (None, None)), False),
    ],
)
def test_types_fit_if_dtype_and_known_sides_are_equal(one: Array, other: Array, fits: bool) -> None:
    assert one.fits(other) is fits
    assert other.fits(one) is fits


@pytest.mark.parametrize(
    ("array", "good", "bad"),
    [
        (Array("int8"), ["-128", "127"], ["128", "1.5", '"1"', "true", "null"]),
        (Array("uint64"), ["0", str(2**64 - 1)], ["-1", str(2**64)]),
        (Array("float32"), ["1", "-3.4e38"], ["3.5e38", "NaN", "Infinity", '"1"', "true"]),
        (Array("float64"), ["1e308"], ["1e309", "-Infinity"]),
        (Array("bool"), ["true"], ["1", '"true"']),
        (Array("str"), ['""', '"a"'], ["1", "null"]),
        (Array("int64", (2,)), ["[1, 2]"], ["[1]", "[1, 2, 3]", "1"]),
        (Array("int64", (None, 2)), ["[[1, 2]]", "[[1, 2], [3, 4]]"], ["[1, 2]", "[[1]]"]),
    ],
)
def test_a_field_takes_the_json_that_the_column_can_hold(
    array: Array, good: list[str], bad: list[str]
) -> None:
    row: Any = TypeAdapter(array.field()[0])
    for json in good:
        value = row.validate_json(json, strict=True)
        assert array.check("x", [value]).shape[0] == 1
    for json in bad:
        with pytest.raises(ValidationError):
            row.validate_json(json, strict=True)


def test_a_field_is_wanted_and_its_bounds_stand_in_the_schema() -> None:
    fields: Any = {"x": Array("uint8", (2,)).field()}
    schema = create_model("Request", **fields).model_json_schema()
    assert schema["required"] == ["x"]
    found = schema["properties"]["x"]
    assert (found["minItems"], found["maxItems"]) == (2, 2)
    assert (found["items"]["minimum"], found["items"]["maximum"]) == (0, 255)


@pytest.mark.parametrize(
    ("annotation", "array"),
    [
        (int, Array("int64")),
        (float, Array("float64")),
        (bool, Array("bool")),
        (str, Array("str")),
        (list[float], Array("float64", (None,))),
        (list[list[int]], Array("int64", (None, None))),
    ],
)
def test_a_field_of_a_model_becomes_a_column(annotation: Any, array: Array) -> None:
    assert of_field("x", annotation) == array


@pytest.mark.parametrize("annotation", [int | str, dict[str, int], list, bytes, list[BaseModel]])
def test_a_field_that_makes_no_column_is_refused_by_name(annotation: Any) -> None:
    with pytest.raises(GraphError, match=r"field 'age' of the request is .*: use int, float"):
        of_field("age", annotation)


class Plain:
    pass


class Derived(Plain):
    pass


F3 = Annotated[np.ndarray, Array("float32", (3,))]
F4 = Annotated[np.ndarray, Array("float32", (4,))]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (F3, F3),
        (F3, np.ndarray),
        (np.ndarray, F3),
        (np.ndarray, np.ndarray),
        (np.typing.NDArray[np.float32], np.ndarray),
        (Derived, Plain),
        (list[int], list[str]),
        (Any, F3),
        (F3, Any),
        (int | None, F3),
        (F3, np.ndarray | list),
        (F3, typing.Optional[np.ndarray]),  # noqa: UP045
        (F3, typing.TypeVar("T")),
        (Annotated[np.ndarray, "a note"], F3),
    ],
)
def test_ends_of_an_edge_that_may_fit_have_no_mismatch(given: Any, wanted: Any) -> None:
    assert mismatch(given, wanted) is None


@pytest.mark.parametrize(
    ("given", "wanted", "why"),
    [
        (F3, F4, "float32[n, 3], expected float32[n, 4]"),
        (Plain, Derived, "Plain, expected Derived"),
        (dict[str, int], np.ndarray, "dict, expected ndarray"),
        (F3, list[int], "ndarray, expected list"),
        (type(None), F3, "NoneType, expected ndarray"),
    ],
)
def test_a_mismatch_says_what_is_given_and_what_is_wanted(
    given: Any, wanted: Any, why: str
) -> None:
    assert mismatch(given, wanted) == why


class _Row(typing.TypedDict):
    price: float


class _HasShape(typing.Protocol):
    shape: tuple[int, ...]


@pytest.mark.parametrize(("given", "wanted"), [(_Row, _Row), (dict, _Row), (F3, _HasShape)])
def test_types_without_instance_checks_are_let_be(given: Any, wanted: Any) -> None:
    assert mismatch(given, wanted) is None


def test_the_array_of_an_annotation_is_found_among_other_notes() -> None:
    array = Array("float32", (3,))
    assert of_annotation(Annotated[np.ndarray, "note", array]) is array
    assert of_annotation(np.ndarray) is None
    assert of_annotation(Annotated[np.ndarray, Field(ge=0)]) is None


def test_columns_have_one_number_of_rows() -> None:
    assert rows_of({"a": [1, 2], "b": np.zeros((2, 3))}) == 2
    with pytest.raises(DataError, match=r"equal lengths, given {'a': 2, 'b': 1}"):
        rows_of({"a": [1, 2], "b": [1]})
    with pytest.raises(DataError, match=r"given {}"):
        rows_of({})
