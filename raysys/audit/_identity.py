"""Identity of the acting user, machine and job."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import sys

from raysys.ray_internals import process
from raysys.secrets import cluster_token

# Metadata of a submitted job, given by `raysys submit`: Ray keeps it with the job, and it reaches
# the job's driver and all of its workers.
BY, FROM = "raysys.by", "raysys.from"


def job_metadata() -> dict[str, str]:
    """Metadata of the submitted job that this process belongs to; empty outside a job."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return process.job_metadata()
    return dict(json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {}))


def submission_id() -> str | None:
    """Id of the submitted job that this process belongs to."""
    return job_metadata().get("job_submission_id")


def actor() -> dict[str, str]:
    """The acting user, and the fingerprint of the cluster's token: first digits of its SHA-256.

    All users share one token, so the name is what the submitting machine reports.
    """
    identity = {"user": job_metadata().get(BY) or _user()}
    if token := cluster_token():
        identity["token"] = f"sha256:{hashlib.sha256(token.encode()).hexdigest()[:8]}"
    return identity


def origin() -> dict[str, str]:
    """The acting machine, and its job if there is one."""
    place = {"host": socket.gethostname(), "address": _address()}
    if job := submission_id():
        place["job"] = job
    if submitter_place := job_metadata().get(FROM):
        place["submitted_from"] = submitter_place
    return place


def submitter() -> dict[str, str]:
    """Metadata of a job that names its submitter and their machine."""
    return {BY: _user(), FROM: f"{socket.gethostname()} ({_address()})"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def _address() -> str:
    """Address of the interface of the default route; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
