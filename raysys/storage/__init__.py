"""One root under which every artefact is written, whole or not at all."""

from raysys.storage._storage import Storage

__all__ = ["Storage"]
