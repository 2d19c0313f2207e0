"""The audit log: an entry for each action, written before it and never changed."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raysys.audit._identity import actor, origin, submission_id
from raysys.errors import StorageError
from raysys.secrets import shown
from raysys.storage import read_records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raysys.storage import Storage

_FOLDER = "audit"


@dataclass(frozen=True)
class AuditEntry:
    """An authorized action.

    Attributes:
        time: UTC, ISO 8601 with microseconds.
        action: Kind of action, such as `job.submit`, `deploy` or `key.add`.
        subject: Name of the job, application or key.
        actor: User, and the fingerprint of the cluster's token that authorized them.
        origin: Host, address, and inside a job its submission id.
    """

    time: str
    action: str
    subject: str
    actor: dict[str, str]
    origin: dict[str, str]
    details: dict[str, Any]

    def __str__(self) -> str:
        actor = " ".join(self.actor[key] for key in ("user", "token") if key in self.actor)
        origin, details = (
            " ".join(f"{key}={value}" for key, value in facts.items())
            for facts in (self.origin, self.details)
        )
        line = f"{self.time} {self.action} {self.subject} by {actor} from {origin} {details}"
        return line.rstrip()


def record(storage: Storage, action: str, subject: str, **details: Any) -> None:
    """Write an entry; call it before the action, and let its error end the action.

    Each entry is a file of its own, since an object store cannot append; its name begins with the
    time, and it is written once. It says that the action was authorized, not that it succeeded.

    Args:
        storage: Storage root of what is acted on; entries are below `audit/`.
        action: Kind of action, such as `deploy`.
        subject: Name of what is acted on.
        details: Further facts; passwords in URIs are masked, pass no other secret.

    Raises:
        StorageError: The entry cannot be written.
    """
    now = datetime.now(UTC)
    details = {key: shown(v) if isinstance(v, str) else v for key, v in details.items()}
    entry = AuditEntry(f"{now:%Y-%m-%dT%H:%M:%S.%fZ}", action, subject, actor(), origin(), details)
    path = f"{_FOLDER}/{now:%Y-%m-%d}/{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.json"
    try:
        storage.write_json(path, asdict(entry))
    except OSError as error:
        raise StorageError(
            f"{action} {subject!r} refused: cannot write the audit log at {storage.uri(_FOLDER)} "
            f"({error}): make the storage root writable and try again"
        ) from error


def record_start(storage: Storage) -> None:
    """Write an entry for the start of the submitted job that this process belongs to, if any.

    It is under the cluster's storage root however the job was submitted.

    Raises:
        StorageError: The entry cannot be written.
    """
    if job := submission_id():
        record(storage, "job.start", job)


def read(
    storage: Storage, *, since: datetime | None = None, action: str | None = None
) -> Iterator[AuditEntry]:
    """Entries in chronological order; a damaged one is left out with a warning.

    Args:
        storage: Storage root that was acted on.
        since: Earliest time.
        action: Kind of action, with the kinds below it: `job` includes `job.submit`.
    """
    first = f"{since.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}" if since else ""
    for day in storage.names(_FOLDER):
        if day.replace("-", "") < first[:8]:
            continue
        names = [name for name in storage.names(f"{_FOLDER}/{day}") if name >= first]
        paths = [f"{_FOLDER}/{day}/{name}" for name in names]
        for entry in read_records(storage, paths, lambda fields: AuditEntry(**fields)):
            if action is None or f"{entry.action}.".startswith(f"{action}."):
                yield entry
