"""The audit log: who did what to the cluster, when and from where."""

from raysys.audit._lines import Line, read, record, record_start
from raysys.audit._who import submitter

__all__ = ["Line", "read", "record", "record_start", "submitter"]
