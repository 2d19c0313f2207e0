"""HTTP client of a cluster's dashboard, with its token."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from raysys.cluster._local_head import remembered
from raysys.errors import RaysysError, UnavailableError
from raysys.secrets import cluster_token

if TYPE_CHECKING:
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
        request = urllib.request.Request(f"{self.url}{path}", headers=token_header())
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UnavailableError(token_error(self.url, error.code)) from None
            body = error.read(500).decode(errors="replace")
            raise UnavailableError(f"{self.url}{path} answers {error.code}: {body}") from None
        except (OSError, ValueError) as error:
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


def find_dashboard(storage: Storage) -> str:
    """URL of the dashboard of RAY_ADDRESS, else of the local head.

    Raises:
        RaysysError: RAY_ADDRESS is not set and no local head runs.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        if address.startswith(("http://", "https://")):
            return address.rstrip("/")
        from ray.dashboard.utils import get_address_for_submission_client

        return str(get_address_for_submission_client(address))
    if head := remembered(storage):
        return head.dashboard_url
    raise RaysysError(
        "there is no cluster: start one on this machine with `raysys up`, or set RAY_ADDRESS to "
        "the URL of a dashboard (http://HOST:8265)"
    )


def token_header() -> dict[str, str]:
    """The authorization header; empty without a token."""
    token = cluster_token()
    return {"Authorization": f"Bearer {token}"} if token else {}
