"""Settings that are checked when they are made, with errors in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from raysys.errors import SettingsError, unknown_names

__all__ = ["Settings", "validation_text"]


class Settings(BaseModel, extra="forbid"):
    """Base of settings: a pydantic model whose errors name the setting, the value and the remedy.

    Raises:
        SettingsError: A setting is unknown or has an invalid value.
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            text = validation_text(error, type(self).model_fields)
            raise SettingsError(f"{type(self).__name__}: {text}") from None


def validation_text(error: ValidationError, names: Iterable[str] = ()) -> str:
    """What is wrong with values, in one line; `names` are those of all settings."""
    names, unknown, wrong = list(names), list[str](), list[str]()
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            unknown.append(place)
            continue
        text = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        is_own = problem["type"] in ("value_error", "missing")  # such a text has the value
        value = repr(problem["input"])
        given = "" if is_own else f"; given: {value[:200]}{' ...' if len(value) > 200 else ''}"
        wrong.append(f"{place}: {text}{given}" if place else f"{text}{given}")
    if unknown:
        settings = f"; settings: {', '.join(names)}" if names else ""
        wrong.insert(0, f"unknown settings: {unknown_names(unknown, names)}{settings}")
    return "; ".join(wrong)
