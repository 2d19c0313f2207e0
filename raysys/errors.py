"""Errors that users see. A message says the fact, what was given, and the remedy."""

__all__ = [
    "DataError",
    "GraphError",
    "RaysysError",
    "ResourceError",
    "StorageError",
    "TrainError",
    "UnavailableError",
]


class RaysysError(Exception):
    """Base of every error that raysys raises on purpose."""


class DataError(RaysysError):
    """The data given cannot be used at all (single bad rows go to quarantine instead)."""


class GraphError(RaysysError):
    """A serving graph is not well formed."""


class ResourceError(RaysysError):
    """The cluster can never satisfy what a stage asks for."""


class StorageError(RaysysError):
    """An artefact is missing, incomplete or cannot be written."""


class TrainError(RaysysError):
    """Training cannot go on, and trying again would not help.

    Attributes:
        step: The step that could not be taken, if it came to steps.
        layer: Name of the layer or parameter that is to blame, if one is.
    """

    def __init__(self, message: str, *, step: int | None = None, layer: str | None = None) -> None:
        super().__init__(message)
        self.step, self.layer = step, layer


class UnavailableError(RaysysError):
    """What is asked for does not run now, on this cluster."""
