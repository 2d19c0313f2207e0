"""One root under which every artefact is written, whole or not at all."""

from raysys.storage._storage import DEFAULT_ROOT, Storage

__all__ = ["DEFAULT_ROOT", "Storage"]
