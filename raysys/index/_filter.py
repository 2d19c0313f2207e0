"""Predicates over attribute columns: a small language, evaluated by Arrow or NumPy."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError

GRAMMAR = (
    "comparisons of columns and constants with ==, !=, <, <=, >, >= (also chained: 1990 <= year < "
    "2000), `in` and `not in` with a list of constants, 'text' in column (part of a string, "
    "element of a list), `is None`, `is not None`, columns of booleans, and `and`, `or`, `not`, "
    "parentheses; dates and times are written as strings"
)
_MAX_CHARACTERS, _MAX_DEPTH, _SHOWN = 1_000_000, 100, 200
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal", ast.NotEq: "not_equal", ast.Lt: "less", ast.LtE: "less_equal",
    ast.Gt: "greater", ast.GtE: "greater_equal",
}  # fmt: skip
_Columns = Mapping[str, Any]  # or a pyarrow.Table
_Value = Callable[[_Columns], Any]


class Filter:
    """A predicate over rows, such as `"1990 <= year < 2000 and genre in ['Drama', 'War']"`.

    A comparison with a missing value is neither true nor false (Kleene's logic, as in SQL), and
    a row counts only if the whole is true.

    Example:
        >>> import pyarrow as pa
        >>> rows = pa.table({"id": [1, 2, 3], "year": [1984, 1994, None]})
        >>> Filter("not year < 1990", rows.schema).mask(rows)
        array([False,  True, False])
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        """Parse a predicate, and check that it can be evaluated.

        Args:
            text: The predicate; what may stand in it says `raysys.index.FILTER_GRAMMAR`.
            schema: Of `id` and the attributes.

        Raises:
            DataError: It is not of the language, or compares what cannot be compared.
        """
        self._text, self._schema = text, schema
        # Numbers without nulls are compared by NumPy: for few rows Arrow's calls cost more than
        # the work. `is_numeric` stays true if nothing but numbers is compared.
        self.names: set[str] = set()
        self.is_numeric = True
        if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
            raise self._error(f"a filter is a string of at most {_MAX_CHARACTERS} characters")
        try:
            tree = ast.parse(text.strip(), mode="eval")
            self._evaluate = self._compile(tree.body, 0)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise self._error(f"it cannot be read ({error})") from error
        self.is_numeric &= bool(self.names) and all(
            _is_number(schema.field(name).type) for name in self.names
        )
        if not self.is_numeric:
            try:
                self._evaluate(schema.empty_table())
            except (OverflowError, pa.ArrowException) as error:
                raise self._error(str(error).splitlines()[0]) from error

    def mask(self, rows: pa.Table | Mapping[str, np.ndarray]) -> np.ndarray:
        """Which rows satisfy it, bool `(n,)`.

        Args:
            rows: `id` and the attributes; arrays without nulls if the filter `is_numeric`.
        """
        with np.errstate(over="ignore"):  # a constant too large for float32 is infinite
            made = self._evaluate(rows)
        if isinstance(made, np.ndarray):
            return made
        if isinstance(made, pa.Scalar):
            return np.full(len(rows), made.as_py() is True)
        return made.fill_null(False).to_numpy(zero_copy_only=False)

    def _error(self, why: str) -> DataError:
        shown = str(self._text)
        shown = shown if len(shown) < _SHOWN else f"{shown[:_SHOWN]}..."
        return DataError(
            f"filter {shown!r}: {why[:_SHOWN]}. Columns: {', '.join(self._schema.names)}; a "
            f"filter holds {GRAMMAR}"
        )

    def _compile(self, node: ast.expr, depth: int) -> _Value:
        """A function of columns for a truth value."""
        if depth > _MAX_DEPTH:
            raise self._error(f"it is nested more than {_MAX_DEPTH} deep")
        if isinstance(node, ast.BoolOp):
            name = "and" if isinstance(node.op, ast.And) else "or"
            return _joined([self._compile(value, depth + 1) for value in node.values], name)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _inverted(self._compile(node.operand, depth + 1))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return _joined([self._compare(*pair) for pair in pairs], "and")
        self.is_numeric = False
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            truth = pa.scalar(node.value)
            return lambda _: truth
        if isinstance(node, ast.Name):
            column = self._column(node)
            if not pa.types.is_boolean(self._type(node)):
                raise self._error(f"column {node.id!r} holds no truth values")
            return lambda rows: pc.and_kleene(column(rows), True)
        raise self._error(f"{ast.unparse(node)!r} is not of the language")

    def _compare(self, left: ast.expr, kind: ast.cmpop, right: ast.expr) -> _Value:
        if isinstance(kind, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error("`is` is followed by None")
            self.is_numeric = False
            test = pc.is_null if isinstance(kind, ast.Is) else pc.is_valid
            column = self._column(left)
            return lambda rows: test(column(rows))
        if isinstance(kind, (ast.In, ast.NotIn)):
            inside = self._inside(left, right)
            return inside if isinstance(kind, ast.In) else _inverted(inside)
        if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
            left, right, kind = right, left, _MIRRORED.get(type(kind), type(kind))()
        column, name = self._column(left), _COMPARE[type(kind)]
        other = self._column(right) if isinstance(right, ast.Name) else self._constant(right, left)
        # Numbers are always compared by NumPy: Arrow refuses integers that no double can hold.
        sides = [self._type(side) for side in (left, right) if isinstance(side, ast.Name)]
        numbers = all(map(_is_number, sides)) and (callable(other) or _is_plain_number(other))
        compare = _by_numpy(getattr(np, name)) if numbers else getattr(pc, name)
        return lambda rows: compare(column(rows), other(rows) if callable(other) else other)

    def _inside(self, left: ast.expr, right: ast.expr) -> _Value:
        """A constant in a column's string or list, or a column among constants."""
        if isinstance(right, ast.Name):
            self.is_numeric = False
            holder, value = self._column(right), self._literal(left)
            return lambda rows: _contains(holder(rows), value)
        if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            raise self._error("`in` is followed by a list or a column")
        column, kind = self._column(left), self._type(left)
        values = [self._literal(element) for element in right.elts]
        if _is_number(kind) and all(map(_is_plain_number, values)):
            numbers, isin = _numbers(values, kind), _by_numpy(np.isin)
            return lambda rows: isin(column(rows), numbers)
        self.is_numeric = False
        try:
            choices = pa.array(values, None if values else kind).cast(kind)
        except (OverflowError, pa.ArrowException) as error:
            raise self._error(str(error)) from error

        def among(rows: _Columns) -> Any:
            given = column(rows)
            return pc.if_else(pc.is_valid(given), pc.is_in(given, value_set=choices), None)

        return among

    def _column(self, node: ast.expr) -> _Value:
        if not isinstance(node, ast.Name):
            raise self._error(f"{ast.unparse(node)!r} stands where a column is expected")
        if node.id not in self._schema.names:
            raise self._error(f"there is no column {node.id!r}")
        self.names.add(node.id)
        if pa.types.is_dictionary(self._schema.field(node.id).type):
            kind = self._type(node)
            return lambda rows: rows[node.id].cast(kind)
        return operator.itemgetter(node.id)

    def _type(self, node: ast.expr) -> Any:
        """A column's type; of dictionary-encoded ones that of the values."""
        kind = self._schema.field(node.id).type  # type: ignore[attr-defined]
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def _constant(self, node: ast.expr, column: ast.expr) -> Any:
        """A number, or a scalar as Arrow compares it with a column: a string may be a date."""
        value, kind = self._literal(node), self._type(column)
        if _is_plain_number(value) and _is_number(kind):
            # An integer is compared as such, whatever its size.
            return _whole(value) if pa.types.is_integer(kind) else value
        self.is_numeric = False
        try:
            made = pa.scalar(value)
            return made.cast(kind) if isinstance(value, str) and not _is_text(kind) else made
        except (OverflowError, pa.ArrowException) as error:
            raise self._error(str(error)) from error

    def _literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            value: Any = node.value
        elif (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and isinstance(node.operand, ast.Constant)
            and _is_plain_number(node.operand.value)
        ):
            value = -node.operand.value  # type: ignore[operator]
        else:
            value = None
        if not isinstance(value, (bool, int, float, str)):
            raise self._error(f"{ast.unparse(node)!r} stands where a constant is expected")
        return value


_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE,
}  # fmt: skip


def _joined(parts: list[_Value], how: str) -> _Value:
    by_numpy = np.logical_and if how == "and" else np.logical_or
    by_arrow = pc.and_kleene if how == "and" else pc.or_kleene

    def join(left: Any, right: Any) -> Any:
        return (by_numpy if isinstance(left, np.ndarray) else by_arrow)(left, right)

    return (
        parts[0]
        if len(parts) == 1
        else lambda rows: functools.reduce(join, (part(rows) for part in parts))
    )


def _by_numpy(compute: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """A comparison of numbers; of a column with nulls, null where it has one."""

    def computed(column: Any, other: Any) -> Any:
        if isinstance(column, np.ndarray):
            return compute(column, other)
        sides = [column, other] if isinstance(other, pa.ChunkedArray) else [column]
        filled = [pc.fill_null(side, 0).to_numpy() for side in sides]
        missing = [side.is_null().to_numpy() for side in sides]
        made = compute(filled[0], filled[1] if len(filled) > 1 else other)
        return pa.array(made, mask=np.logical_or.reduce(missing))

    return computed


def _numbers(values: list[Any], kind: Any) -> np.ndarray:
    """Constants as a column can hold them; of integers only those that it can."""
    dtype = np.dtype(kind.to_pandas_dtype())
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(values, dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    whole = [_whole(value) for value in values]
    return np.array([one for one in whole if isinstance(one, int) and low <= one <= high], dtype)


def _inverted(part: _Value) -> _Value:
    def inverted(rows: _Columns) -> Any:
        made = part(rows)
        return ~made if isinstance(made, np.ndarray) else pc.invert(made)

    return inverted


def _contains(column: Any, value: Any) -> Any:
    if _is_text(column.type):
        if not isinstance(value, str):
            raise pa.ArrowTypeError(f"{value!r} is no part of a string")
        return pc.match_substring(column, value)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise pa.ArrowTypeError(f"{column.type} is neither a string nor a list")
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole, pa.ChunkedArray):  # of no chunk at all
        whole = pa.array([], column.type)
    found = np.zeros(len(whole), bool)
    parents = pc.list_parent_indices(whole).to_numpy()
    elements, scalar = pc.list_flatten(whole), pa.scalar(value)
    hits = pc.equal(elements, scalar).fill_null(False).to_numpy(zero_copy_only=False)
    found[parents[hits]] = True
    return pa.array(found, mask=whole.is_null().to_numpy(zero_copy_only=False))


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: Any) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)


def _is_plain_number(value: Any) -> bool:
    """Within what NumPy can compare with any column; not a truth value."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 64)


def _whole(value: Any) -> Any:
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1 << 64
    return int(value) if is_whole else value
