"""Filter predicates over attribute columns, evaluated by Arrow."""

from __future__ import annotations

import ast
import functools
import operator
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError
from raysys.index._filter_limits import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_NAME,
    MAX_OPERATORS,
    MAX_VALUES,
    QUOTED,
    excess,
)

if TYPE_CHECKING:
    import re

GRAMMAR = (
    "comparisons of columns and constants with ==, !=, <, <=, >, >= (also chained: 1990 <= year < "
    "2000), `in` and `not in` with a list of constants, 'text' in column (substring, element of "
    "a list), `is None`, `is not None`, boolean columns, and `and`, `or`, `not`, parentheses; "
    "dates and times are strings; a column whose name is not an identifier stands in backticks; "
    f"at most {MAX_CHARACTERS:,} characters, {MAX_OPERATORS} operators and {MAX_VALUES:,} values"
)
_MAX_SHOWN = 200
# Memory of a compiled filter, about: of each comparison, and of its text with the listed values.
_COMPARISON_BYTES, _CHARACTER_BYTES = 2000, 12
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal", ast.NotEq: "not_equal", ast.Lt: "less", ast.LtE: "less_equal",
    ast.Gt: "greater", ast.GtE: "greater_equal",
}  # fmt: skip
_Value = Callable[[pa.Table], Any]


class Filter:
    """A predicate over rows, such as `"1990 <= year < 2000 and genre in ['Drama', 'War']"`.

    A comparison with a missing value is neither true nor false (Kleene's logic, as in SQL); a
    row matches only if the predicate is true.

    Example:
        >>> import pyarrow as pa
        >>> rows = pa.table({"id": [1, 2, 3], "year": [1984, 1994, None]})
        >>> Filter("not year < 1990", rows.schema).mask(rows)
        array([False,  True, False])
        >>> Filter("`year` == 1984 or id in [3]", rows.schema).mask(rows)
        array([ True, False,  True])
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        """Parse a predicate, see `raysys.index.FILTER_GRAMMAR`, and check its types."""
        self._text, self._schema = text, schema
        if not isinstance(text, str):
            raise self._error("a filter must be a string")
        if reason := excess(text):
            raise self._error(reason)
        self._quoted: dict[str, str] = {}  # names in backticks, by the names in the syntax tree
        self._comparisons = 0
        self._evaluate = self._checked()

    def _checked(self) -> _Value:
        """The predicate as a function of columns, with its types checked."""
        schema = self._schema
        try:
            evaluate = self._compile(self._parse(self._text.strip()).body, 0)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise self._error(f"invalid syntax ({error})") from error
        try:
            evaluate(schema.empty_table())
        except (OverflowError, pa.ArrowException) as error:
            raise self._error(str(error).splitlines()[0]) from error
        return evaluate

    def mask(self, rows: pa.Table) -> np.ndarray:
        """Whether each row satisfies the predicate, bool `(n,)`; columns as in the schema."""
        with np.errstate(over="ignore"):  # a constant too large for float32 is infinite
            result = self._evaluate(rows)
        if isinstance(result, pa.Scalar):
            return np.full(len(rows), result.as_py() is True)
        return result.fill_null(False).to_numpy(zero_copy_only=False)

    @property
    def memory_bytes(self) -> int:
        """Memory of the compiled filter, about."""
        return _COMPARISON_BYTES * (1 + self._comparisons) + _CHARACTER_BYTES * len(self._text)

    def __repr__(self) -> str:
        return f"Filter({self._text!r})"

    def _error(self, reason: str) -> DataError:
        shown = str(self._text)
        shown = shown if len(shown) < _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
        return DataError(
            f"filter {shown!r}: {reason[:_MAX_SHOWN]}. Columns: {', '.join(self._schema.names)}; a "
            f"filter consists of {GRAMMAR}"
        )

    def _parse(self, text: str) -> ast.Expression:
        """The syntax tree, with placeholders for the names in backticks."""

        def placeholder(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0]
            name = f"_{len(self._quoted)}_quoted_"
            self._quoted[name] = match[1]
            return f" {name} "

        return ast.parse(QUOTED.sub(placeholder, text).strip(), mode="eval")

    def _name(self, node: ast.Name) -> str:
        """The column of a name, or of its only equivalent in another Unicode form."""
        name = self._quoted.get(node.id, node.id)
        if name in self._schema.names or len(name) > MAX_NAME:
            return name
        form = unicodedata.normalize("NFKC", name)
        equal = [n for n in self._schema.names if unicodedata.normalize("NFKC", n) == form]
        return equal[0] if len(equal) == 1 else name

    def _compile(self, node: ast.expr, depth: int) -> _Value:
        """A function of columns that returns truth values."""
        if depth > MAX_DEPTH:
            raise self._error(f"nesting exceeds {MAX_DEPTH} levels")
        if isinstance(node, ast.BoolOp):
            name = "and" if isinstance(node.op, ast.And) else "or"
            return _combined([self._compile(value, depth + 1) for value in node.values], name)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _inverted(self._compile(node.operand, depth + 1))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return _combined([self._compare(*pair) for pair in pairs], "and")
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            truth = pa.scalar(node.value)
            return lambda _: truth
        if isinstance(node, ast.Name):
            column = self._column(node)
            if not pa.types.is_boolean(self._type(node)):
                raise self._error(f"column {self._name(node)!r} is not boolean")
            return lambda rows: pc.and_kleene(column(rows), True)
        raise self._error(f"unsupported expression {self._shown(node)}")

    def _compare(self, left: ast.expr, kind: ast.cmpop, right: ast.expr) -> _Value:
        self._comparisons += 1
        if isinstance(kind, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error("`is` must be followed by None")
            test = pc.is_null if isinstance(kind, ast.Is) else pc.is_valid
            column = self._column(left)
            return lambda rows: test(column(rows))
        if isinstance(kind, (ast.In, ast.NotIn)):
            inside = self._inside(left, right)
            return inside if isinstance(kind, ast.In) else _inverted(inside)
        if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
            left, right, kind = right, left, _MIRRORED.get(type(kind), type(kind))()
        column, name = self._column(left), _COMPARE[type(kind)]
        is_column = isinstance(right, ast.Name)
        operand = self._column(right) if is_column else self._constant(right, left)
        # Numbers are always compared by NumPy: Arrow refuses integers that exceed a double.
        sides = [self._type(side) for side in (left, right) if isinstance(side, ast.Name)]
        numbers = all(map(_is_number, sides)) and (callable(operand) or _is_plain_number(operand))
        compare = _by_numpy(getattr(np, name)) if numbers else getattr(pc, name)
        return lambda rows: compare(column(rows), operand(rows) if callable(operand) else operand)

    def _inside(self, left: ast.expr, right: ast.expr) -> _Value:
        """A constant in a string or list column, or a column in a list of constants."""
        if isinstance(right, ast.Name):
            container, value = self._column(right), self._literal(left)
            return lambda rows: _contains(container(rows), value)
        if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            raise self._error("`in` must be followed by a list or a column")
        column, kind = self._column(left), self._type(left)
        values = [self._literal(element) for element in right.elts]
        if _is_number(kind) and all(map(_is_plain_number, values)):
            numbers, isin = _numbers(values, kind), _by_numpy(np.isin)
            return lambda rows: isin(column(rows), numbers)
        try:
            choices = pa.array(values, None if values else kind).cast(kind)
        except (OverflowError, pa.ArrowException) as error:
            raise self._error(str(error)) from error

        def is_in(rows: pa.Table) -> Any:
            values = column(rows)
            return pc.if_else(pc.is_valid(values), pc.is_in(values, value_set=choices), None)

        return is_in

    def _column(self, node: ast.expr) -> _Value:
        if not isinstance(node, ast.Name):
            raise self._error(f"expected a column instead of {self._shown(node)}")
        name = self._name(node)
        if name not in self._schema.names:
            raise self._error(f"unknown column {name!r}")
        if pa.types.is_dictionary(self._schema.field(name).type):
            kind = self._type(node)
            return lambda rows: rows[name].cast(kind)
        return operator.itemgetter(name)

    def _type(self, node: ast.expr) -> Any:
        """A column's type; the value type of a dictionary-encoded column."""
        kind = self._schema.field(self._name(node)).type  # type: ignore[arg-type]
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def _constant(self, node: ast.expr, column: ast.expr) -> Any:
        """A number, or a scalar of a type comparable to the column: a string may be a date."""
        value, kind = self._literal(node), self._type(column)
        if _is_plain_number(value) and _is_number(kind):
            # Integers are compared exactly, regardless of their size.
            return _integral(value) if pa.types.is_integer(kind) else value
        try:
            scalar = pa.scalar(value)
            return scalar.cast(kind) if isinstance(value, str) and not _is_text(kind) else scalar
        except (OverflowError, pa.ArrowException) as error:
            raise self._error(str(error)) from error

    def _literal(self, node: ast.expr) -> Any:
        sign = _SIGNS.get(type(node.op)) if isinstance(node, ast.UnaryOp) else None
        constant = node.operand if sign else node  # type: ignore[attr-defined]
        value = constant.value if isinstance(constant, ast.Constant) else None
        if sign:
            value = sign(value) if type(value) in (int, float) else None
        if not isinstance(value, (bool, int, float, str)):
            raise self._error(f"expected a constant instead of {self._shown(node)}")
        return value

    def _shown(self, node: ast.expr) -> str:
        """An expression in a message; one that is long by its type only."""
        length = (node.end_col_offset or 0) - node.col_offset
        if node.end_lineno != node.lineno or length > _MAX_SHOWN:
            return f"a {type(node).__name__}"
        text = ast.unparse(node)
        for placeholder, name in self._quoted.items():
            text = text.replace(placeholder, f"`{name}`")
        return repr(text)


_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE,
}  # fmt: skip


def _combined(parts: list[_Value], operation: str) -> _Value:
    join = pc.and_kleene if operation == "and" else pc.or_kleene
    if len(parts) == 1:
        return parts[0]
    return lambda rows: functools.reduce(join, (part(rows) for part in parts))


def _by_numpy(compute: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """A comparison of numbers, null where a column is null."""

    def computed(column: Any, operand: Any) -> Any:
        sides = [column, operand] if isinstance(operand, pa.ChunkedArray) else [column]
        filled = [pc.fill_null(side, 0).to_numpy() for side in sides]
        missing = [side.is_null().to_numpy() for side in sides]
        result = compute(filled[0], filled[1] if len(filled) > 1 else operand)
        return pa.array(result, mask=np.logical_or.reduce(missing))

    return computed


def _numbers(values: list[Any], kind: Any) -> np.ndarray:
    """Constants in the dtype of a column; integers out of its range are dropped."""
    dtype = np.dtype(kind.to_pandas_dtype())
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(values, dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    numbers = map(_integral, values)
    return np.array(
        [number for number in numbers if isinstance(number, int) and low <= number <= high], dtype
    )


def _inverted(part: _Value) -> _Value:
    return lambda rows: pc.invert(part(rows))


def _contains(column: Any, value: Any) -> Any:
    if _is_text(column.type):
        if not isinstance(value, str):
            raise pa.ArrowTypeError(f"{value!r} is not a string, as the column is")
        return pc.match_substring(column, value)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise pa.ArrowTypeError(f"{column.type} is neither a string nor a list")
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    contains = np.zeros(len(lists), bool)
    parents = pc.list_parent_indices(lists).to_numpy()
    elements, scalar = pc.list_flatten(lists), pa.scalar(value)
    hits = pc.equal(elements, scalar).fill_null(False).to_numpy(zero_copy_only=False)
    contains[parents[hits]] = True
    return pa.array(contains, mask=lists.is_null().to_numpy(zero_copy_only=False))


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: Any) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)


def _is_plain_number(value: Any) -> bool:
    """Whether NumPy can compare it with any column of numbers; booleans are excluded."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 64)


def _integral(value: Any) -> Any:
    is_integral = isinstance(value, float) and value.is_integer() and abs(value) < 1 << 64
    return int(value) if is_integral else value
