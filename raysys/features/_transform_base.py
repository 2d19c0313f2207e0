"""Base of the transforms: columns, validated options, names of the features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Learned from one column by a transform: numbers, lists of texts, float64 arrays.
State = dict[str, Any]


class Transform(BaseModel, frozen=True, extra="forbid"):
    """Base of the transforms.

    Subclasses define an initializer that calls this one: type checkers would otherwise take
    `columns` for a keyword.

    Attributes:
        columns: Input columns of the table, fields of a request.
    """

    columns: Annotated[tuple[str, ...], Field(min_length=1)]

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        try:
            super().__init__(columns=columns, **options)
        except ValidationError as error:
            raise DataError(f"{type(self).__name__}({columns!r}): {first_fault(error)}") from error

    def required_columns(self) -> list[str]:
        """Columns that a table must have to fit the transform."""
        return list(self.columns)

    def feature_names(self, states: Sequence[State]) -> list[str]:
        """Names of the output columns, in order."""
        raise NotImplementedError


def first_fault(error: ValidationError) -> str:
    """First error of a definition, with the option named."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"]) or "options"
    return f"{place}: {fault['msg']}; given: {fault['input']!r}"


def check_unique(names: Iterable[str], keep: Iterable[str] = ()) -> None:
    """Refuse names that occur twice, or in `keep`.

    Raises:
        DataError: A name occurs twice.
    """
    seen = set(keep)
    for name in names:
        if name in seen:
            raise DataError(
                f"two columns would be named {name!r}: use each column in one transform of a kind, "
                "and rename a column to keep that has the name of a feature"
            )
        seen.add(name)
