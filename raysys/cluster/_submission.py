"""Submitting a job to a cluster and streaming its progress."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from raysys.errors import RaysysError


def submit(
    entrypoint: str,
    *,
    dashboard_url: str,
    working_dir: Path,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command on the cluster, from a packed copy of a folder, and stream its output.

    The same as `ray job submit --working-dir DIR -- ENTRYPOINT`; `.gitignore` says what
    stays behind.

    Args:
        entrypoint: The command line.
        dashboard_url: The address of the cluster's dashboard.
        working_dir: The folder that is packed and becomes the command's working directory.
        env: Environment variables for the job and all of its workers.

    Returns:
        The job's submission id.

    Raises:
        RaysysError: The job failed or was stopped.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env").setLevel(logging.WARNING)
    client = JobSubmissionClient(dashboard_url)
    runtime_env = {"working_dir": str(working_dir), "env_vars": dict(env or {})}
    job_id = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)

    async def follow() -> None:
        async for text in client.tail_job_logs(job_id):
            print(text, end="", flush=True)

    asyncio.run(follow())
    status = client.get_job_status(job_id)
    if status != JobStatus.SUCCEEDED:
        raise RaysysError(
            f"job {job_id} ended as {status}: {client.get_job_info(job_id).message or 'no reason'}"
        )
    return job_id
