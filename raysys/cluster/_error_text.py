"""Errors of user code in worker processes, as text: in one line, and with their traceback."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path

from pydantic import ValidationError

from raysys.errors import RaysysError
from raysys.settings import validation_text

# Colours, and pydantic's links.
_NOISE = re.compile(r"\x1b\[[0-9;]*m|\n *For further information visit https://errors\.pydantic\S*")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_RAYSYS = str(Path(__file__).parents[1])
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_MAX_CHARACTERS = 1000


def task_error_cause(error: BaseException) -> BaseException:
    """The exception raised inside a task, from the error raised by `ray.get`.

    Ray wraps it once for each task in a chain. Other errors, and those with an unpicklable cause,
    are returned unchanged.

    Example:
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise cluster.task_error_cause(error) from None
    """
    from ray.exceptions import RayTaskError

    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def error_line(error: BaseException) -> str:
    """Type and message of an error in one line, with the line of the user's code at fault.

    Also of an error that Ray raises for a task, whose exception may not unpickle. An error of
    raysys has no place, since its message says what to do.

    Example:
        KeyError: 'b' at wine.py:6
    """
    text, cause = error_traceback(error), task_error_cause(error)
    if isinstance(cause, RaysysError):
        return _without_place(cause, text)
    places = [m for m in _FRAME.finditer(text) if _is_users(m["file"])]
    place = f" at {_short(places[-1]['file'])}:{places[-1]['line']}" if places else ""
    return _without_place(cause, text) + place


def error_traceback(error: BaseException) -> str:
    """Traceback of an error as plain text, from the first line of the user's code."""
    frames = error.__traceback__
    while frames and not _is_users(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames or error.__traceback__)
    return _NOISE.sub("", "".join(lines)).rstrip()


def _without_place(error: BaseException, text: str) -> str:
    from ray.exceptions import RayTaskError, UnserializableException

    if isinstance(error, BaseExceptionGroup):
        inner = "; ".join(_without_place(part, "") for part in error.exceptions)
        return inner if len(error.exceptions) == 1 else f"{type(error).__name__}: {inner}"
    if isinstance(error, RayTaskError | UnserializableException):  # with the cause as text only
        last = _NOISE.sub("", text or str(error)).rstrip().splitlines()[-1]
        name, colon, message = last.partition(": ")
        return f"{name.rpartition('.')[2]}{colon}{message}"
    text = validation_text(error) if isinstance(error, ValidationError) else str(error)
    message = " ".join(_NOISE.sub("", text).split())
    if len(message) > _MAX_CHARACTERS:
        message = f"{message[:_MAX_CHARACTERS]} ..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _is_users(file: str) -> bool:
    """Whether a source file belongs neither to raysys nor to an installed package."""
    is_installed = "site-packages" in file or file.startswith((_STANDARD_LIBRARY, _RAYSYS, "<"))
    return not is_installed and file.endswith(".py")


def _short(file: str) -> str:
    """Path of a source file relative to the folder from which it is imported."""
    for folder in (os.getcwd(), *sys.path):  # noqa: PTH109
        if folder and file.startswith(f"{folder.rstrip('/')}/"):
            return file.removeprefix(f"{folder.rstrip('/')}/")
    return file
