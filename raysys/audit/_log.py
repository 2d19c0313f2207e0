"""One line for each act, written before it is done and never changed."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raysys.audit._identity import submission_id, whence, who
from raysys.errors import StorageError
from raysys.secrets import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raysys.storage import Storage

_FOLDER = "audit"


@dataclass(frozen=True)
class Line:
    """An act that was let happen.

    Attributes:
        when: UTC, ISO 8601 with microseconds.
        action: `job.submit`, `deploy`, `key.add`: what was done.
        subject: What it was done to.
        who: User, and the fingerprint of the cluster's token that let them in.
        whence: Host, address, and the job's submission id inside a job.
        facts: What else belongs to it.
    """

    when: str
    action: str
    subject: str
    who: dict[str, str]
    whence: dict[str, str]
    facts: dict[str, Any]

    def __str__(self) -> str:
        by = " ".join([self.who["user"], *([self.who["token"]] if "token" in self.who else [])])
        place = " ".join(f"{key}={value}" for key, value in self.whence.items())
        facts = " ".join(f"{key}={value}" for key, value in self.facts.items())
        return f"{self.when} {self.action} {self.subject} by {by} from {place} {facts}".rstrip()


def record(storage: Storage, action: str, subject: str, **facts: Any) -> None:
    """Write down that something is about to be done; call it before doing it.

    Each line is an object of its own, since an object store cannot append; its name begins with
    the time, and nothing writes it twice. What cannot be written down must not be done: let the
    error end the action. A line says that the act was let happen, not that it succeeded.

    Args:
        storage: The root of what is acted on; lines lie below `audit/`.
        action: What is done, such as `deploy`.
        subject: To what.
        facts: What else belongs to it; passwords in URIs are left out, give no other secret.

    Raises:
        StorageError: The line cannot be written.
    """
    now = datetime.now(UTC)
    facts = {key: shown(fact) if isinstance(fact, str) else fact for key, fact in facts.items()}
    line = Line(f"{now:%Y-%m-%dT%H:%M:%S.%fZ}", action, subject, who(), whence(), facts)
    path = f"{_FOLDER}/{now:%Y-%m-%d}/{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.json"
    try:
        storage.write_json(path, asdict(line))
    except OSError as error:
        raise StorageError(
            f"{action} {subject!r} is not done, since its audit line cannot be written to "
            f"{storage.uri(_FOLDER)}: {error}. Make the storage root writable and try again"
        ) from error


def record_start(storage: Storage) -> None:
    """Write down that a submitted job begins, from within; nothing in any other process.

    So there is a line under the cluster's storage root however the job was submitted.

    Raises:
        StorageError: The line cannot be written.
    """
    if job := submission_id():
        record(storage, "job.start", job)


def read(
    storage: Storage, *, since: datetime | None = None, action: str | None = None
) -> Iterator[Line]:
    """Lines in the order of time.

    Args:
        storage: The root that was acted on.
        since: The first time to show.
        action: This one, or those below it: `job` also shows `job.submit`.
    """
    first = f"{since.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}" if since else ""
    for day in storage.names(_FOLDER):
        if day.replace("-", "") < first[:8]:
            continue
        for name in storage.names(f"{_FOLDER}/{day}"):
            if name < first:
                continue
            line = Line(**json.loads(storage.read_bytes(f"{_FOLDER}/{day}/{name}") or b""))
            if action is None or f"{line.action}.".startswith(f"{action}."):
                yield line
