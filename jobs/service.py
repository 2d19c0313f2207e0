"""A stored model as an application that Ray Serve itself deploys, as KubeRay's RayService asks.

`serve run jobs.service:build name=flight_delays graph=jobs.flight_graph:endpoint_graph route=/late`
does the same on any cluster. The application is raysys' own, behind raysys' gateway; what Serve
runs under this path deploys it, and deploys it again when it is gone.
"""

import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve

from raysys import serve
from raysys.errors import RaysysError
from raysys.models import ModelStore
from raysys.storage import Storage


class Settings(BaseModel):
    """What is served, and how."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="of the stored model, and of the application")
    graph: str = Field(description="module:function that makes the graph, of storage and model")
    alias: str = "champion"
    route: str | None = Field(None, description="path of requests; /<name> by default")
    protected: bool = Field(False, description="asks an API key")
    replicas: int = Field(1, ge=1)
    cpus_per_replica: float = Field(1.0, gt=0)
    host: str = Field("0.0.0.0", description="interface of the gateway")
    port: int = 8000
    storage: str | None = Field(None, description="storage root; else RAYSYS_STORAGE")


class Keeper:
    """Deploys the application, and tells Serve when it is gone: then it is deployed again."""

    def __init__(self, settings: Settings) -> None:
        storage = Storage(settings.storage)
        model = ModelStore(storage).get(settings.name, settings.alias)
        self.endpoint = serve.deploy(
            settings.name,
            _function(settings.graph)(storage, model),
            route=settings.route,
            replicas=settings.replicas,
            cpus_per_replica=settings.cpus_per_replica,
            protected=settings.protected,
            host=settings.host,
            port=settings.port,
            storage=storage,
        )
        print(f"{settings.name} version {model.version} answers at {self.endpoint.url}")

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RaysysError: The application that was deployed is no longer there.
        """
        title = f"{self.endpoint.name}-v{self.endpoint.version}"
        if title not in ray_serve.status().applications:
            raise RaysysError(f"{title} is gone")

    def __call__(self) -> str:
        """Where the application answers."""
        return self.endpoint.url


def build(settings: Settings) -> ray_serve.Application:
    """The application that Serve runs."""
    deployment = ray_serve.deployment(
        Keeper,
        name="keeper",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2.0,  # three that fail, and it is made anew
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=2.0,
    )
    return deployment.bind(settings)


def _function(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RaysysError(
            f"graph {path!r}: {error}; give module:function, such as "
            "jobs.flight_graph:endpoint_graph"
        ) from error
