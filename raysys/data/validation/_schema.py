"""Schemas of tables, as plain data that is stored as YAML or JSON."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raysys.arguments import checked
from raysys.data._polars import pl
from raysys.data.readers._column_types import FILE, LINE, MALFORMED, ROW
from raysys.data.validation._value_types import is_temporal, polars_type
from raysys.errors import DataError

REASON = "_reason"  # column of a quarantine
RESERVED = (FILE, LINE, ROW, MALFORMED, REASON)

_Bounds = Annotated[list[Any], Field(min_length=2, max_length=2)]


class _SchemaPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_SchemaPart):
    """Type of a column and constraints on its values.

    Attributes:
        type: An Arrow type: int8 to int64, uint8 to uint64, float32, float64, string, bool,
            date, timestamp (timestamp[us]), timestamp[ms], [us] or [ns], with a zone
            timestamp[us, UTC].
        nullable: Whether a value may be missing.
        min: Smallest allowed value: a number; for dates and timestamps a date or time, in UTC
            unless it has an offset.
        max: Largest allowed value.
        pattern: Regular expression (Rust's syntax) that the full text must match.
        allowed: Allowed values.
        foreign_key: `table.column` that must contain the value. Missing values pass if the column
            is nullable, as in SQL.
    """

    type: str
    nullable: bool = False
    min: Any = None
    max: Any = None
    pattern: str | None = None
    allowed: list[Any] | None = None
    foreign_key: str | None = None

    @model_validator(mode="after")
    def _check_constraints(self) -> Column:
        kind = polars_type(self.type)
        for name in ("min", "max"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, bound(self.type, getattr(self, name), name))
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.pattern is not None:
            if self.type != "string":
                raise ValueError(f"pattern requires the type string, not {self.type}")
            try:
                pl.Series([""]).str.contains(self.pattern)
            except pl.exceptions.PolarsError as error:
                raise ValueError(
                    f"pattern {self.pattern!r} is not a regular expression: {_summary(error)}"
                ) from None
        if self.allowed is not None:
            if not self.allowed:
                raise ValueError("allowed is an empty list: no value could pass")
            self.allowed_values(kind)
        if self.foreign_key is not None and not all(self.foreign_key.partition(".")):
            raise ValueError(f"foreign_key {self.foreign_key!r}: give it as table.column")
        return self

    def allowed_values(self, kind: Any) -> pl.Series:
        """`allowed` as a series of the column's type."""
        allowed = self.allowed or []
        values = pl.Series(allowed, dtype=kind, strict=False)
        text = self.type == "string"
        for value, read in zip(allowed, values, strict=True):
            if read is None or text != isinstance(value, str):
                quote = "; YAML reads some words as booleans: quote it" if text else ""
                raise ValueError(f"allowed: {value!r} is not a valid {self.type}{quote}")
        return values


def bound(type_name: str, value: Any, what: str) -> Any:
    """A bound as a value that compares with a column's: int, float, date or datetime.

    Raises:
        ValueError: The bound does not fit the type.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if type_name.startswith(("int", "uint", "float")) and number:
        return value
    if is_temporal(type_name):
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValueError(f"{what} {value!r} is not an ISO 8601 date or time") from None
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            if type_name == "date":
                return value.date()
            return value.replace(tzinfo=value.tzinfo or UTC)
    raise ValueError(
        f"{what} {value!r} does not fit the type {type_name}: give a number for numbers, a date "
        "or time for dates and timestamps, and nothing for other types"
    )


class DistributionBounds(_SchemaPart):
    """Bounds, both included, of a column's statistics over all valid rows.

    Attributes:
        min: Bounds of the smallest value; `median`, `mean` and `max` likewise. For numbers, dates
            and timestamps (without `mean`).
        null_share: Bounds of the fraction of missing values, from 0 to 1. For any type.
    """

    min: _Bounds | None = None
    median: _Bounds | None = None
    mean: _Bounds | None = None
    max: _Bounds | None = None
    null_share: _Bounds | None = None

    def bounds(self, column: str, type_name: str) -> dict[str, list[Any]]:
        """Bounds by statistic, as values that compare with the column's."""
        by_statistic: dict[str, list[Any]] = {}
        for name in type(self).model_fields:
            pair = getattr(self, name)
            if pair is None:
                continue
            what = f"distributions.{column}.{name}"
            kind = "float64" if name == "null_share" else type_name
            if name == "mean" and is_temporal(type_name):
                raise ValueError(f"{what}: a mean requires numbers, not {type_name}")
            low, high = by_statistic[name] = [bound(kind, value, what) for value in pair]
            if low > high:
                raise ValueError(f"{what}: the lower bound {pair[0]} is above {pair[1]}")
        return by_statistic


class RowBounds(_SchemaPart):
    """Bounds of the number of valid rows and of the fraction of rows in quarantine."""

    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)
    max_quarantined_share: float | None = Field(default=None, ge=0, le=1)


class Schema(_SchemaPart):
    """Types and rules for rows, and bounds for the table as a whole.

    Rows that break `columns`, `unique` or `rules` go to quarantine; a table outside the bounds of
    `distributions` or `rows` raises an error.

    Attributes:
        name: Name in messages and metrics.
        columns: Columns by name, in the order of the valid rows' columns.
        unique: Groups of columns; of rows that pass all else and are equal in a group the first
            is valid, one group after the other. Missing values are never equal, as in SQL.
        rules: Conditions on one row by name: SQL expressions over the columns, as polars parses
            them (`arr_time > dep_time OR diverted`; without `IN`). An unknown value, from a
            missing operand, passes, as in SQL.
        distributions: Bounds of statistics by column.
        rows: Bounds of the number of rows.

    Example:
        >>> schema = Schema.from_yaml('''
        ... name: flights
        ... columns:
        ...   carrier: {type: string, allowed: [AA, UA]}
        ...   delay: {type: int64, min: -120, nullable: true}
        ... ''')
        >>> schema.columns["delay"].min
        -120
    """

    name: str
    columns: dict[str, Column] = Field(min_length=1)
    unique: list[Annotated[list[str], Field(min_length=1)]] = []
    rules: dict[str, str] = {}
    distributions: dict[str, DistributionBounds] = {}
    rows: RowBounds = RowBounds()

    @model_validator(mode="after")
    def _check_references(self) -> Schema:
        if reserved := [name for name in self.columns if name in RESERVED]:
            raise ValueError(f"columns {reserved}: reserved for the origin of rows; rename them")
        for group in self.unique:
            self._require(group, f"unique {group}")
        self._require(self.distributions, "distributions")
        normalized = {
            name: DistributionBounds(**distribution.bounds(name, self.columns[name].type))
            for name, distribution in self.distributions.items()
        }
        object.__setattr__(self, "distributions", normalized)
        for name in self.rules:
            self._check_rule(name)
        return self

    @classmethod
    @checked
    def from_yaml(cls, text: str) -> Schema:
        """Read a schema from YAML or JSON.

        Raises:
            DataError: The text is not a valid schema; the message names the place.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise DataError(f"the schema is not valid YAML: {error}") from None
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc'])) or 'schema'}: "
                f"{problem['msg'].removeprefix('Value error, ')}"
                for problem in error.errors()
            ]
            raise DataError(f"the schema is not valid: {'; '.join(problems)}") from None

    def to_yaml(self) -> str:
        """The schema as YAML without defaults, one line per column."""
        plain = _plain(self.model_dump(exclude_defaults=True))
        for part in {"columns", "distributions"} & plain.keys():
            plain[part] = {name: _FlowMapping(value) for name, value in plain[part].items()}
        return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)

    def __repr__(self) -> str:
        groups = f", unique: {self.unique}" if self.unique else ""
        return (
            f"Schema({self.name!r}, {len(self.columns)} columns, {len(self.rules)} rules{groups})"
        )

    def rule(self, name: str) -> pl.Expr:
        """A rule as an expression over the columns."""
        return pl.sql_expr(self.rules[name])

    def polars_types(self) -> dict[str, Any]:
        """Polars types by column."""
        return {name: polars_type(column.type) for name, column in self.columns.items()}

    def _require(self, names: Any, what: str) -> None:
        if unknown := [name for name in names if name not in self.columns]:
            raise ValueError(f"{what}: unknown columns {unknown}; add them to the schema's columns")

    def _check_rule(self, name: str) -> None:
        what = f"rule {name!r}: {self.rules[name]!r}"
        try:
            expression = self.rule(name)
            self._require(expression.meta.root_names(), what)
            kind = pl.DataFrame(schema=self.polars_types()).select(expression).dtypes
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{what} is not an SQL expression: {_summary(error)}") from None
        if kind != [pl.Boolean]:
            raise ValueError(f"{what} is {kind[0]}, not a boolean: compare it with something")
        if not _is_row_wise(expression):
            raise ValueError(
                f"{what} depends on other rows: give bounds of a column's statistics in "
                "distributions"
            )


class _FlowMapping(dict):
    """A mapping that is written in one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _FlowMapping, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, True)
)


def _is_row_wise(expression: pl.Expr) -> bool:
    """Whether an expression's value in a row depends on that row alone."""
    meta, inner = expression.meta, expression.meta.pop()
    if meta.is_literal() or meta.is_column():
        return True
    try:
        across_rows = (meta.is_scalar() and meta.root_names()) or not meta.is_row_separable()
    except pl.exceptions.ColumnNotFoundError:  # a function whose form depends on the column's type
        across_rows = False
    return bool(inner) and not across_rows and all(_is_row_wise(part) for part in inner)


def _plain(value: Any) -> Any:
    """Data of a model for YAML: times at midnight UTC are dates, other times ISO text."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat() if value.timetz() != time(tzinfo=UTC) else value.date()
    return value


def _summary(error: Exception) -> str:
    """The first line of an error of polars, or the one after the drawing of a pattern."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error: ")), lines[0])
