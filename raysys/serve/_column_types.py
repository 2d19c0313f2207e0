"""Column types of a graph's inputs and edges."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BeforeValidator, Field

from raysys.errors import DataError, GraphError

Columns = dict[str, Any]
"""Values by name, each of n rows: NumPy arrays `(n, ...)`, or lists of n."""

_TEXT = "str"
# NumPy dtypes and their names in the Open Inference Protocol.
DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", _TEXT: "BYTES",
}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """The type of a column: a NumPy array `(n, *shape)`, n being the rows of a batch.

    Used for the inputs of a graph, and in annotations of its nodes:
    `Annotated[np.ndarray, Array("float32", (64,))]`.

    Attributes:
        dtype: NumPy dtype name, or "str" for Python strings in an object array.
        shape: Shape of one row; None is any length, the empty shape a single value.
        nullable: Whether values may be missing: NaN in an array of floats, None in one of strings.
    """

    dtype: str = "float32"
    shape: tuple[int | None, ...] = ()
    nullable: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DATATYPES:
            raise GraphError(f"dtype {self.dtype!r} is not one of {', '.join(DATATYPES)}")
        if self.nullable and self.numpy.kind not in "fO":
            raise GraphError(
                f"{self.dtype} has no missing values: use float64, where they are NaN, or str"
            )

    def __str__(self) -> str:
        sides = ", ".join("any" if side is None else str(side) for side in self.shape)
        return f"{self.dtype}[n{', ' + sides if sides else ''}]{' or null' * self.nullable}"

    @property
    def numpy(self) -> np.dtype:
        """The dtype of the arrays."""
        return np.dtype(object if self.dtype == _TEXT else self.dtype)

    def fits(self, other: Array) -> bool:
        """Whether a value of this type is also one of the other type."""
        return (
            self.dtype == other.dtype
            and other.nullable >= self.nullable
            and len(self.shape) == len(other.shape)
            and all(a == b or None in (a, b) for a, b in zip(self.shape, other.shape, strict=True))
        )

    def zeros(self, rows: int) -> np.ndarray:
        """An array of zeros or empty strings; sides of any length are 1."""
        shape = (rows, *(1 if side is None else side for side in self.shape))
        return np.full(shape, "" if self.dtype == _TEXT else 0, self.numpy)

    def check(self, name: str, values: Any) -> np.ndarray:
        """The values as a C-contiguous array of this type.

        Integers are cast to floats and narrow types to wide ones, without loss. In a nullable
        column None becomes NaN.

        Raises:
            DataError: Wrong shape, dtype or range; the message names the column.
        """
        try:
            array = np.asarray(values, dtype=object if self.dtype == _TEXT else None)
        except ValueError as error:
            raise DataError(f"{name}: rows of unequal length ({error})") from error
        expected = ("n", *("any" if side is None else side for side in self.shape))
        if array.ndim != len(expected) or any(
            side not in (None, actual)
            for side, actual in zip(self.shape, array.shape[1:], strict=True)
        ):
            raise DataError(f"{name}: expected shape {expected}, given {array.shape}")
        if self.dtype == _TEXT:
            allowed = (str, type(None)) if self.nullable else str
            if not all(isinstance(value, allowed) for value in array.flat):
                raise DataError(f"{name}: expected strings")
            return array
        if self.nullable:
            array = _with_nan(name, array)
        integers = array.dtype.kind in "iu" and self.numpy.kind in "iuf"
        if not integers and not np.can_cast(array.dtype, self.numpy, "same_kind"):
            raise DataError(f"{name}: expected {self.dtype}, given {array.dtype}")
        if array.dtype.kind in "iu" and self.numpy.kind in "iu" and array.size:
            limits = np.iinfo(self.numpy)
            if int(array.min()) < limits.min or int(array.max()) > limits.max:
                raise DataError(f"{name}: values beyond the range of {self.dtype}")
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, self.numpy)
        if self.numpy.kind == "f":
            wrong = np.isinf(array) if self.nullable else ~np.isfinite(array)
            if wrong.any():
                raise DataError(f"{name}: values that are not finite in {self.dtype}")
        return array

    def to_json(self, row: Any) -> Any:
        """A row's value as JSON has it; a missing one is None."""
        if self.nullable and self.numpy.kind == "f":
            row = np.where(np.isnan(row), None, row)
        return row.tolist() if hasattr(row, "tolist") else row

    def field(self) -> tuple[Any, Any]:
        """The pydantic field of one row: annotation and default."""
        kind = self.numpy.kind
        scalar: Any = {"b": bool, "f": float, "O": str}.get(kind, int)
        bounds: dict[str, Any] = {}
        if kind in "iu":
            limits = np.iinfo(self.numpy)
            bounds |= {"ge": int(limits.min), "le": int(limits.max)}
        elif kind == "f":
            maximum = float(str(np.finfo(self.numpy).max))  # as JSON prints it
            bounds |= {"ge": -maximum, "le": maximum, "allow_inf_nan": False}
        annotation: Any = typing.Annotated[scalar, Field(**bounds)]
        if kind in "iu":  # 1.0 is an integer in JSON Schema
            annotation = typing.Annotated[annotation, BeforeValidator(_integral)]
        if self.nullable:
            annotation = typing.Optional[annotation]  # noqa: UP045 - not of a class
        for side in reversed(self.shape):
            length = {} if side is None else {"min_length": side, "max_length": side}
            rows = types.GenericAlias(list, (annotation,))
            annotation = typing.Annotated[rows, Field(**length)]  # type: ignore[call-overload]
        return annotation, ...


def _with_nan(name: str, array: np.ndarray) -> np.ndarray:
    """Numbers with NaN for None; integers that a float would round are refused."""
    integers: list[int] = []
    if array.dtype == object:
        if not {type(value) for value in array.flat} <= {bool, int, float, type(None)}:
            raise DataError(f"{name}: expected numbers or null")
        integers = [value for value in array.flat if isinstance(value, int)]
    elif array.dtype.kind in "iu" and array.size:
        integers = [int(array.min()), int(array.max())]
    if max(map(abs, integers), default=0) > _EXACT:
        raise DataError(f"{name}: integers beyond 2**53 in a column of float64 with nulls")
    return array.astype(np.float64) if array.dtype == object else array


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_EXACT = 1 << 53  # beyond, float64 has not all integers
_SCALARS = {int: "int64", float: "float64", bool: "bool", str: _TEXT}


def of_annotation(annotation: Any) -> Array | None:
    """The Array of an annotation, if it has one."""
    return next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Array)), None)


def of_field(name: str, annotation: Any) -> Array:
    """The column type of a request model's field; what may be None is nullable, of float64 or str.

    Raises:
        GraphError: Unsupported annotation.
    """
    shape: list[int | None] = []
    while typing.get_origin(annotation) is list:
        shape.append(None)
        (annotation,) = typing.get_args(annotation)
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    choices = set(typing.get_args(annotation) if is_union else [annotation])
    nullable = type(None) in choices
    scalar = next(iter(choices - {type(None)}), None)
    if len(choices) != 1 + nullable or scalar not in _SCALARS:
        raise GraphError(
            f"field {name!r} of the request is {annotation}: use int, float, bool or str, any of "
            "them with `| None`, or lists of them"
        )
    dtype = _SCALARS[scalar]
    return Array("float64" if nullable and dtype != _TEXT else dtype, tuple(shape), nullable)


def mismatch(actual: Any, expected: Any) -> str | None:
    """Why the annotations of an edge's ends are incompatible; None if they are compatible."""
    actual_array, expected_array = of_annotation(actual), of_annotation(expected)
    if actual_array and expected_array:
        fits = actual_array.fits(expected_array)
        return None if fits else f"{actual_array}, expected {expected_array}"
    actual, expected = _class_of(actual), _class_of(expected)
    try:
        if actual is None or expected is None or issubclass(actual, expected):
            return None
    except TypeError:  # typed dicts and protocols do not support issubclass
        return None
    return f"{actual.__name__}, expected {expected.__name__}"


def _class_of(annotation: Any) -> type | None:
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, types.UnionType):
        return None
    origin = typing.get_origin(annotation) or annotation
    return origin if isinstance(origin, type) and origin is not Any else None


def rows_of(columns: Mapping[str, Any]) -> int:
    """The number of rows, the same in every column.

    Raises:
        DataError: Columns of unequal length, or no columns.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"columns must have equal lengths, given {lengths}")
    return next(iter(lengths.values()))
