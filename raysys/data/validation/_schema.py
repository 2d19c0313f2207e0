"""What the rows of a table must satisfy, as plain data that is kept as YAML or JSON."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raysys.data.readers._column_types import FILE, MALFORMED, ROW
from raysys.data.validation._value_types import is_temporal, polars_type
from raysys.errors import DataError

REASON = "_reason"  # why a row was turned away
RESERVED = (FILE, ROW, MALFORMED, REASON)

_Bounds = Annotated[list[Any], Field(min_length=2, max_length=2)]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Plain):
    """What the values of one column must satisfy.

    Attributes:
        type: An Arrow type: int8 to int64, uint8 to uint64, float32, float64, string, bool,
            date, timestamp (timestamp[us]), timestamp[ms], [us] or [ns], with a zone
            timestamp[us, UTC].
        nullable: Whether a value may be missing.
        min: The smallest value allowed: a number; for dates and timestamps a date or time,
            in UTC if it names no offset.
        max: The largest.
        pattern: A regular expression (Rust's syntax) that a text must match as a whole.
        allowed: The values allowed.
        key: `table.column`: the value must stand in that column of another table. A missing
            value passes, if the column is nullable, as in SQL.
    """

    type: str
    nullable: bool = False
    min: Any = None
    max: Any = None
    pattern: str | None = None
    allowed: list[Any] | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Column:
        kind = polars_type(self.type)
        for name in ("min", "max"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, bound(self.type, getattr(self, name), name))
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.pattern is not None:
            if self.type != "string":
                raise ValueError(f"a pattern is for the type string, not {self.type}")
            try:
                pl.Series([""]).str.contains(self.pattern)
            except pl.exceptions.PolarsError as error:
                raise ValueError(
                    f"pattern {self.pattern!r} is no regular expression: {_line(error)}"
                ) from None
        if self.allowed is not None:
            if not self.allowed:
                raise ValueError("allowed is an empty list: no value could pass")
            self.allowed_values(kind)
        if self.key is not None and not all(self.key.partition(".")):
            raise ValueError(f"key {self.key!r} is not of the form table.column")
        return self

    def allowed_values(self, kind: Any) -> pl.Series:
        """`allowed` as a series of the column's type."""
        allowed = self.allowed or []
        given = pl.Series(allowed, dtype=kind, strict=False)
        text = self.type == "string"
        for value, read in zip(allowed, given, strict=True):
            if read is None or text != isinstance(value, str):
                quote = "; YAML takes some words for booleans: quote it" if text else ""
                raise ValueError(f"allowed has {value!r}, which is no {self.type}{quote}")
        return given


def bound(type_name: str, value: Any, what: str) -> Any:
    """A bound as a value that compares with a column's: int, float, date or datetime.

    Raises:
        ValueError: It is of another kind.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if type_name.startswith(("int", "uint", "float")) and number:
        return value
    if is_temporal(type_name):
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValueError(f"{what} {value!r} is no date or time in ISO 8601") from None
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            if type_name == "date":
                return value.date()
            return value.replace(tzinfo=value.tzinfo or UTC)
    raise ValueError(
        f"{what} {value!r} does not fit the type {type_name}: {what} is a number for numbers, a "
        "date or time for dates and timestamps, and no other type has one"
    )


class Distribution(_Plain):
    """Bounds, both included, of statistics over all good rows; one that is left out is free.

    Attributes:
        min: Of the smallest value; `median`, `mean` and `max` likewise. For numbers; dates and
            timestamps have no mean.
        null_share: Of the share of missing values, from 0 to 1. For any type.
    """

    min: _Bounds | None = None
    median: _Bounds | None = None
    mean: _Bounds | None = None
    max: _Bounds | None = None
    null_share: _Bounds | None = None

    def bounds(self, column: str, type_name: str) -> dict[str, list[Any]]:
        """The bounds given, by statistic, as values that compare with the column's."""
        given: dict[str, list[Any]] = {}
        for name in type(self).model_fields:
            pair = getattr(self, name)
            if pair is None:
                continue
            what = f"distributions.{column}.{name}"
            kind = "float64" if name == "null_share" else type_name
            if name == "mean" and is_temporal(type_name):
                raise ValueError(f"{what}: the mean is for numbers, not {type_name}")
            given[name] = [bound(kind, value, what) for value in pair]
            if given[name][0] > given[name][1]:
                raise ValueError(f"{what}: the lower bound {pair[0]} is above {pair[1]}")
        return given


class Rows(_Plain):
    """Bounds of the number of good rows, and of the share of rows in quarantine."""

    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)
    quarantined_share: float | None = Field(default=None, ge=0, le=1)


class Schema(_Plain):
    """What a table must satisfy.

    A row that breaks `columns`, `unique` or `rules` goes to quarantine; `distributions` and
    `rows` are of the table as a whole, and a broken one stops the job.

    Attributes:
        name: For messages.
        columns: By name, in the order of the good rows' columns.
        unique: Groups of columns; of rows that pass all else and are equal in a group the first
            passes, one group after the other. Rows with a missing value in it equal none, as in
            SQL.
        rules: Conditions on one row, by what to call them: SQL expressions over the columns, as
            polars parses them (`arr_time > dep_time OR diverted`; `IN` is not among them). One
            whose value is unknown, because a value is missing, passes, as in SQL.
        distributions: Bounds of columns' statistics.
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
    distributions: dict[str, Distribution] = {}
    rows: Rows = Rows()

    @model_validator(mode="after")
    def _is_of_its_columns(self) -> Schema:
        if reserved := [name for name in self.columns if name in RESERVED]:
            raise ValueError(f"columns {reserved}: these names say where a row comes from")
        for group in self.unique:
            self._known(group, f"unique {group}")
        self._known(self.distributions, "distributions")
        normal = {
            name: Distribution(**distribution.bounds(name, self.columns[name].type))
            for name, distribution in self.distributions.items()
        }
        object.__setattr__(self, "distributions", normal)
        for name in self.rules:
            self._check_rule(name)
        return self

    @classmethod
    def from_yaml(cls, text: str) -> Schema:
        """Read a schema from YAML or JSON.

        Raises:
            DataError: It is no schema; the message names the place.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise DataError(f"the schema is no YAML: {error}") from None
        except ValidationError as error:
            broken = [
                f"{'.'.join(str(part) for part in one['loc']) or 'schema'}: "
                f"{one['msg'].removeprefix('Value error, ')}"
                for one in error.errors()
            ]
            raise DataError(f"the schema is not valid: {'; '.join(broken)}") from None

    def to_yaml(self) -> str:
        """The schema as YAML; what has its default is left out."""

        class Line(dict):
            """Written in one line."""

        class Dumper(yaml.SafeDumper):
            def ignore_aliases(self, data: Any) -> bool:
                return True

        Dumper.add_representer(
            Line, lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line, True)
        )
        plain = _plain(self.model_dump(exclude_defaults=True))
        for part in ("columns", "distributions"):
            if part in plain:
                plain[part] = {name: Line(value) for name, value in plain[part].items()}
        return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)

    def rule(self, name: str) -> pl.Expr:
        """A rule as an expression over the columns."""
        return pl.sql_expr(self.rules[name])

    def polars_types(self) -> dict[str, Any]:
        """The columns' types."""
        return {name: polars_type(column.type) for name, column in self.columns.items()}

    def _known(self, names: Any, what: str) -> None:
        if unknown := [name for name in names if name not in self.columns]:
            raise ValueError(f"{what}: the schema has no column {unknown}; give it a type too")

    def _check_rule(self, name: str) -> None:
        what = f"rule {name!r}: {self.rules[name]!r}"
        try:
            expression = self.rule(name)
            self._known(expression.meta.root_names(), what)
            kind = pl.DataFrame(schema=self.polars_types()).select(expression).dtypes
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{what} is no SQL expression: {_line(error)}") from None
        if kind != [pl.Boolean]:
            raise ValueError(f"{what} is {kind[0]}, not true or false: compare it with something")
        if not _of_one_row(expression):
            raise ValueError(
                f"{what} needs other rows than its own: bounds of a whole column stand in "
                "distributions"
            )


def _of_one_row(expression: pl.Expr) -> bool:
    """Whether an expression's value in a row depends on that row alone."""
    meta, inner = expression.meta, expression.meta.pop()
    if meta.is_literal() or meta.is_column():
        return True
    try:
        of_more = (meta.is_scalar() and meta.root_names()) or not meta.is_row_separable()
    except pl.exceptions.ColumnNotFoundError:  # a function whose form depends on the column's type
        of_more = False
    return bool(inner) and not of_more and all(_of_one_row(part) for part in inner)


def _plain(value: Any) -> Any:
    """Data of a model with times as YAML readers like them: dates at midnight, else ISO text."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat() if value.timetz() != time(tzinfo=UTC) else value.date()
    return value


def _line(error: Exception) -> str:
    """What an error of polars says: its first line, or where it draws a pattern that after it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error: ")), lines[0])
