"""Submitting a job to a cluster and streaming its progress."""

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from raysys.errors import RaysysError

_AGENT_TIMEOUT_S = 60.0


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
        RaysysError: No such cluster, or the job failed or was stopped.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    # What Ray says of the upload would stand between the job's own lines.
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(dashboard_url)
    except (ConnectionError, RuntimeError) as error:
        raise RaysysError(
            f"no Ray dashboard that takes our token answers at {dashboard_url} ({error}): check "
            "RAY_ADDRESS and `ray get-auth-token`"
        ) from error
    runtime_env = {"working_dir": str(working_dir), "env_vars": dict(env or {})}
    deadline = time.monotonic() + _AGENT_TIMEOUT_S
    while True:
        try:
            job_id = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
            break
        except RuntimeError as error:
            # A head's dashboard answers some seconds before its agent, which starts jobs.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise RaysysError(f"{dashboard_url} refuses the job: {error}") from error
            time.sleep(0.5)

    async def follow() -> None:
        async for text in client.tail_job_logs(job_id):
            print(text, end="", flush=True)

    try:
        asyncio.run(follow())
    except KeyboardInterrupt:
        print(f"\njob {job_id} goes on; follow it with `ray job logs --follow {job_id}`, end it "
              f"with `ray job stop {job_id}`")  # fmt: skip
        return job_id
    status = client.get_job_status(job_id)
    if status != JobStatus.SUCCEEDED:
        raise RaysysError(f"job {job_id} ended as {status}: its last lines above say why")
    return job_id
