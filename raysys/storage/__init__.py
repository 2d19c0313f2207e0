"""The storage root, under which every artefact is written atomically."""

from raysys.storage._records import read_record, read_records
from raysys.storage._storage import DEFAULT_ROOT, Storage

__all__ = ["DEFAULT_ROOT", "Storage", "read_record", "read_records"]
