"""The cluster that is meant, and an HTTP client of its dashboard, with its token."""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raysys.cluster._local_head import local_head, start_local, stop_local
from raysys.console import note
from raysys.errors import RaysysError, UnavailableError
from raysys.ray_internals import local_processes
from raysys.secrets import cluster_token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raysys.storage import Storage


class Dashboard:
    """A cluster's dashboard at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __repr__(self) -> str:
        return f"Dashboard({self.url!r})"

    def get(self, path: str, *, timeout_s: float = 20.0) -> Any:
        """The JSON response of a path.

        Raises:
            UnavailableError: The dashboard does not answer, rejects the token, or returns an error.
        """
        try:
            return json.loads(self.text(path, timeout_s=timeout_s))
        except ValueError as error:
            raise UnavailableError(f"{self.url} is not a Ray dashboard ({error})") from None

    def text(self, path: str, *, timeout_s: float = 20.0) -> str:
        """The response of a path as text; errors as of `get`."""
        request = urllib.request.Request(f"{self.url}{path}", headers=token_header())
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return str(reply.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UnavailableError(token_error(self.url, error.code)) from None
            body = error.read(500).decode(errors="replace")
            raise UnavailableError(f"{self.url}{path} answers {error.code}: {body}") from None
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"no Ray dashboard answers at {self.url} ({error}): check RAY_ADDRESS, or start a "
                "cluster here with `raysys up`"
            ) from None


def token_error(url: str, status: int) -> str:
    """Error message for a missing or a wrong token."""
    if status == 401:
        return (
            f"{url} requires the cluster's token, and none is set: set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to a file with it (`ray get-auth-token` on the head)"
        )
    return (
        f"{url} rejects the token: it belongs to another cluster, or is an API key. Set "
        "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the output of `ray get-auth-token` on the head"
    )


def find_dashboard() -> str:
    """URL of the dashboard of the cluster of RAY_ADDRESS, else of this user's head here.

    Raises:
        RaysysError: RAY_ADDRESS is not set and no local head runs.
        UnavailableError: Nothing answers at RAY_ADDRESS, the address of a GCS.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        return dashboard_of(address)
    if head := local_head():
        return head.dashboard_url
    raise RaysysError(
        "there is no cluster: start one on this machine with `raysys up`, or set RAY_ADDRESS to "
        "the URL of a dashboard (http://HOST:8265)"
    )


@contextmanager
def submission_dashboard(storage: Storage) -> Iterator[str]:
    """URL of `find_dashboard`, else of a new local head, which ends if the block fails.

    Raises:
        StorageError: The storage root does not answer, or is not writable; nothing was started.
    """
    if running := bool(os.environ.get("RAY_ADDRESS") or local_head()):
        storage.check()
        url = find_dashboard()
    else:
        head = start_local(storage)
        url = head.dashboard_url
        note(f"started a Ray head at {head.address}; `raysys down` stops it")
    try:
        yield url
    except BaseException:
        if not running:
            stop_local(storage)
        raise


def dashboard_of(address: str) -> str:
    """URL of the dashboard of a cluster, from that URL or from the address of its GCS."""
    if is_url(address):
        return address.rstrip("/")
    head = local_head()
    if head and address == head.address:
        return head.dashboard_url
    _require_answer(address)
    from ray.dashboard.utils import get_address_for_submission_client

    return str(get_address_for_submission_client(address))


def gcs_of(address: str) -> str:
    """Address of a cluster's GCS, from that address or from the URL of its dashboard.

    Raises:
        UnavailableError: Nothing answers at the URL, or no node of the cluster is on this machine.
    """
    if not is_url(address):
        _require_answer(address)
        return address
    head = local_head()
    if head and address.rstrip("/") == head.dashboard_url:
        return head.address
    session = Dashboard(address).get("/api/version")["session_name"]
    if gcs := local_processes.gcs_address_of_session(session):
        return gcs
    raise UnavailableError(
        f"the cluster of {address} has no node on this machine, and this process needs one to "
        "connect: `raysys submit FILE` runs it on the cluster; without RAY_ADDRESS it runs here"
    )


def _require_answer(address: str) -> None:
    """Raise if nothing listens at the address of a GCS; Ray would try for 40 seconds."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":  # Ray's own choice
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"no Ray cluster answers at {address} ({error}): set RAY_ADDRESS to the URL of a "
            "dashboard (http://HOST:8265) or to the address of a GCS (HOST:6379), or unset it"
        ) from None


def is_url(address: str) -> bool:
    """Whether an address is that of a dashboard."""
    return address.startswith(("http://", "https://"))


def token_header() -> dict[str, str]:
    """The authorization header; empty without a token."""
    token = cluster_token()
    return {"Authorization": f"Bearer {token}"} if token else {}
