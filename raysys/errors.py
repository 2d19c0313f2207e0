"""Errors shown to users: each message has the fact, the value given and the remedy."""

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
    """Unusable data (single bad rows go to quarantine instead)."""


class GraphError(RaysysError):
    """A malformed serving graph."""


class ResourceError(RaysysError):
    """A demand that the cluster can never satisfy."""


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
