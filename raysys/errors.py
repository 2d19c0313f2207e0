"""Errors shown to users: each message has the fact, the value given and the remedy."""

from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "DataError",
    "GraphError",
    "RaysysError",
    "ReservationError",
    "ResourceError",
    "SettingsError",
    "StepError",
    "StorageError",
    "TrainError",
    "UnavailableError",
    "unknown_names",
]

_MAX_NAME = 100


class RaysysError(Exception):
    """Base of every error that raysys raises on purpose."""


class ArgumentError(RaysysError, TypeError):
    """An argument of a wrong kind, or an unknown one."""


class DataError(RaysysError):
    """Unusable data (single bad rows go to quarantine instead)."""


class GraphError(RaysysError):
    """A malformed serving graph."""


class ResourceError(RaysysError):
    """A demand that the cluster can never satisfy."""


class ReservationError(ResourceError):
    """A demand above what is reserved for the trial or step that makes it."""


class SettingsError(RaysysError, ValueError):
    """An unknown setting, or an invalid value of one."""


class StepError(RaysysError):
    """A failed step of a job; its notes have the traceback of the step's process.

    Attributes:
        step: Name of the step.
        line: Error of the step's code in one line, with its place.
        loss: Description of the loss, if a retry may cure it.
    """

    def __init__(self, step: str, line: str, loss: str | None = None) -> None:
        super().__init__(step, line, loss)
        self.step, self.line, self.loss = step, line, loss

    def __str__(self) -> str:
        return f"step {self.step!r}: {self.line}"


class StorageError(RaysysError):
    """A missing, incomplete or unwritable artefact."""


class TrainError(RaysysError):
    """A training failure that a retry would not cure.

    Attributes:
        step: Optimizer step that failed, if training had begun.
        layer: Name of the layer or parameter at fault, if known.
    """

    def __init__(self, message: str, *, step: int | None = None, layer: str | None = None) -> None:
        super().__init__(message)
        self.step, self.layer = step, layer


class UnavailableError(RaysysError):
    """A service that is not running now."""


def unknown_names(names: Iterable[str], known: Iterable[str]) -> str:
    """Unknown names for a message, each with the nearest known one.

    Example:
        >>> unknown_names(["carrat", "x"], ["carat", "cut"])
        "'carrat' (did you mean 'carat'?), 'x'"
    """
    from difflib import get_close_matches

    known = list(known)
    cut = [name if len(str(name)) < _MAX_NAME else f"{str(name)[:_MAX_NAME]}..." for name in names]
    near = {name: get_close_matches(str(name), known, 1) for name in cut}
    shown = [f"{n!r} (did you mean {c[0]!r}?)" if c else repr(n) for n, c in near.items()]
    return ", ".join(shown)
