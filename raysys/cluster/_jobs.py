"""Jobs of a cluster: submit, list, follow and stop."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys import audit
from raysys.cluster._dashboard import token_error
from raysys.cluster._job_output import ENDED, follow
from raysys.errors import RaysysError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.storage import Storage

_AGENT_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted to a cluster, by raysys or by `ray job submit`.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        by: Submitter, if the metadata names one.
        submitted, ended: Unix times in seconds; `ended` is None while it runs.
        message: Ray's description of the status.
        exit_code: Exit status of its command, negative for a signal; None before its end, and for
            a job that did not start.
    """

    id: str
    command: str
    status: str
    by: str
    submitted: float
    ended: float | None
    message: str
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the job has succeeded, failed or was stopped."""
        return self.status in ENDED

    @property
    def seconds(self) -> float:
        """Duration so far, or in all."""
        return (self.ended or time.time()) - self.submitted


class Jobs:
    """The jobs of the cluster behind a dashboard; a thin layer over Ray's own client."""

    def __init__(self, dashboard_url: str) -> None:
        """Connect.

        Raises:
            UnavailableError: The dashboard does not answer, or rejects the token.
        """
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        # Ray's log lines about the upload would mix with the job's output.
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.ERROR)
        # They would take precedence over the URL.
        names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        removed = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            self._client = JobSubmissionClient(dashboard_url)
        except AuthenticationError as error:
            status = 403 if "Authentication failed" in str(error) else 401
            raise UnavailableError(token_error(dashboard_url, status)) from None
        except (ConnectionError, RuntimeError) as error:
            raise UnavailableError(
                f"no Ray dashboard answers at {dashboard_url} ({error}): check RAY_ADDRESS"
            ) from error
        finally:
            os.environ.update(removed)
        self._url = dashboard_url

    def __repr__(self) -> str:
        return f"Jobs({self._url!r})"

    def submit(
        self,
        command: str,
        runtime_env: Mapping[str, Any],
        *,
        storage: Storage,
        name: str = "job",
        job: str | None = None,
    ) -> str:
        """Run a command on the cluster, in an uploaded copy of a folder; the submission id.

        Args:
            command: The command line.
            runtime_env: The folder and the variables, from `raysys.cluster.runtime_env`.
            storage: Storage root of the audit log.
            name: Prefix of the job's id.
            job: Complete id, for callers that must not start a job twice.

        Raises:
            RaysysError: The cluster rejects the job, or the audit log cannot be written.
        """
        job = job or f"{name}-{secrets.token_hex(4)}"
        request: dict[str, Any] = {
            "entrypoint": command, "submission_id": job,
            "runtime_env": dict(runtime_env), "metadata": audit.submitter(),
        }  # fmt: skip
        audit.record(storage, "job.submit", job, command=command, cluster=self._url)
        deadline = time.monotonic() + _AGENT_TIMEOUT_S
        while True:
            try:
                return str(self._client.submit_job(**request))
            except RuntimeError as error:
                # The dashboard answers seconds before the agent that starts jobs.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise RaysysError(f"{self._url} rejects the job: {error}") from error
                time.sleep(0.5)

    def all(self) -> list[SubmittedJob]:
        """All submitted jobs, newest first."""
        listed = self._client.list_jobs()
        jobs = [_job(details) for details in listed if details.submission_id]
        return sorted(jobs, key=lambda job: -job.submitted)

    def find(self, prefix: str) -> SubmittedJob:
        """The job whose id has a prefix.

        Raises:
            RaysysError: No job or several jobs match.
        """
        jobs = self.all()
        exact = [job for job in jobs if job.id == prefix]
        matches = exact or [job for job in jobs if job.id.startswith(prefix)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            examples = ", ".join(job.id for job in matches[:5])
            raise RaysysError(f"{prefix!r} begins the ids of {len(matches)} jobs: {examples}")
        raise RaysysError(f"no job's id begins with {prefix!r}: `raysys jobs` lists them")

    def status(self, job: str) -> SubmittedJob:
        """The current state of a job."""
        return _job(self._client.get_job_info(job))

    def logs(self, job: str) -> str:
        """Output of a job so far."""
        return str(self._client.get_job_logs(job))

    def follow(self, job: str) -> SubmittedJob:
        """Print a job's output from its beginning until the job has ended.

        Raises:
            KeyboardInterrupt: Ctrl-C; the job continues.
            UnavailableError: The cluster no longer answers; the job may continue.
        """
        try:
            asyncio.run(follow(self._client, job))
            return self.status(job)
        except OSError as error:
            raise UnavailableError(
                f"{self._url} no longer answers ({error}); the job may continue: "
                f"`raysys logs {job} --follow` once it does"
            ) from error

    def stop(self, job: str, storage: Storage) -> SubmittedJob:
        """Stop a job and wait until it has ended; its record and its output stay.

        Raises:
            RaysysError: The job does not end, or the audit log of the storage root is unwritable.
        """
        audit.record(storage, "job.stop", job, cluster=self._url)
        self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while not (current := self.status(job)).is_over:
            if time.monotonic() > deadline:
                raise RaysysError(f"{job} has not ended {_STOP_TIMEOUT_S:g} s after it was stopped")
            time.sleep(0.2)
        return current


def _job(details: Any) -> SubmittedJob:
    return SubmittedJob(
        id=details.submission_id,
        command=details.entrypoint,
        status=str(getattr(details.status, "value", details.status)),
        by=(details.metadata or {}).get("raysys.by", ""),
        submitted=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        message=details.message or "",
        exit_code=details.driver_exit_code,
    )
