"""What every transform is: columns, options that are checked, names of what it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a transform learns of one of its columns: numbers, lists of texts, float64 arrays.
State = dict[str, Any]


class Transform(BaseModel, frozen=True, extra="forbid"):
    """Base of the transforms.

    Each has an initializer of its own that hands on to this one: type checkers would otherwise
    take `columns` for a keyword.

    Attributes:
        columns: Columns of the table, fields of a request, that it reads.
    """

    columns: Annotated[tuple[str, ...], Field(min_length=1)]

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        try:
            super().__init__(columns=columns, **options)
        except ValidationError as error:
            raise DataError(f"{type(self).__name__}({columns!r}): {first_fault(error)}") from error

    def needs(self) -> list[str]:
        """The columns that a table must have for it to be fitted."""
        return list(self.columns)

    def names(self, states: Sequence[State]) -> list[str]:
        """Names of the columns that it makes, in order."""
        raise NotImplementedError


def first_fault(error: ValidationError) -> str:
    """The first thing that a definition gets wrong, with the option named."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"]) or "options"
    return f"{place}: {fault['msg']}; given: {fault['input']!r}"


def checked_names(names: Sequence[str], kept: Mapping[str, Any] | Sequence[str] = ()) -> list[str]:
    """The names, if no two are the same.

    Raises:
        DataError: Two are.
    """
    seen = set(kept)
    for name in names:
        if name in seen:
            raise DataError(
                f"two columns would be named {name!r}: each column may be in one transform of a "
                "kind, and be kept only under another name"
            )
        seen.add(name)
    return list(names)
