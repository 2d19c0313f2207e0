"""Who acts, and from where: what this process knows of itself and of the job that it is in."""

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
_JOB_ID = "job_submission_id"
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def job_metadata() -> dict[str, str]:
    """What was given with the submission of the job that this process is in; empty outside."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return process.job_metadata()
    return dict(json.loads(os.environ.get(_JOB_CONFIG, "{}")).get("metadata", {}))


def submission_id() -> str | None:
    """The id of the submitted job that this process is in."""
    return job_metadata().get(_JOB_ID)


def who() -> dict[str, str]:
    """The acting user, as far as it is known.

    A token is one for all who hold it, so the name is what the submitting machine says; the
    token's fingerprint is not a secret and tells which token let them in.
    """
    metadata = job_metadata()
    known = {"user": metadata.get(BY) or _user()}
    if fingerprint := token_fingerprint():
        known["token"] = fingerprint
    return known


def whence() -> dict[str, str]:
    """The acting machine, and the job if there is one."""
    known = {"host": socket.gethostname(), "address": _address()}
    if job := submission_id():
        known["job"] = job
    if submitter := job_metadata().get(FROM):
        known["submitted_from"] = submitter
    return known


def token_fingerprint() -> str | None:
    """The first digits of the SHA-256 of the cluster's token; None without one."""
    token = cluster_token()
    if token is None:
        return None
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def submitter() -> dict[str, str]:
    """Metadata that tells a job's processes who submitted it, and from where."""
    return {BY: _user(), FROM: f"{socket.gethostname()} ({_address()})"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def _address() -> str:
    """The address of the interface that leads outside; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
