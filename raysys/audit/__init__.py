"""The audit log: who did what to the cluster, when and from where."""

from raysys.audit._identity import submitter
from raysys.audit._log import AuditEntry, read, record, record_start

__all__ = ["AuditEntry", "read", "record", "record_start", "submitter"]
