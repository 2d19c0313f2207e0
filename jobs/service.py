"""A stored model as an application that Ray Serve itself deploys, for KubeRay's RayService.

`serve run jobs.service:build name=flight_delays graph=jobs.flight_graph:endpoint_graph route=/late`
does the same on any cluster. Serve runs a small deployer, which deploys the application behind
raysys' gateway, and redeploys it when it no longer exists.
"""

import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve

from raysys import serve
from raysys.console import say
from raysys.errors import RaysysError
from raysys.models import ModelStore
from raysys.storage import Storage


class ServiceConfig(BaseModel):
    """Settings of the service."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="name of the stored model and of the application")
    graph: str = Field(description="module:function that builds the graph from storage and model")
    alias: str = "champion"
    route: str | None = Field(None, description="path of requests; /<name> by default")
    protected: bool = Field(False, description="require an API key")
    replicas: int = Field(1, ge=1)
    cpus_per_replica: float = Field(1.0, gt=0)
    host: str = Field("127.0.0.1", description="interface of the gateway; 0.0.0.0 is all")
    port: int = 8000
    storage: str | None = Field(None, description="storage root; RAYSYS_STORAGE by default")


class ServiceDeployer:
    """Deploys the application; fails its health check, so that Serve restarts it, without it."""

    def __init__(self, config: ServiceConfig) -> None:
        storage = Storage(config.storage)
        model = ModelStore(storage).get(config.name, config.alias)
        self.endpoint = serve.deploy(
            config.name,
            _function(config.graph)(storage, model),
            route=config.route,
            replicas=config.replicas,
            cpus_per_replica=config.cpus_per_replica,
            protected=config.protected,
            gateway=serve.GatewayOptions(config.host, config.port, storage=storage),
        )
        say(f"{config.name} version {model.version} is served at {self.endpoint.url}")

    def check_health(self) -> None:
        """Health check of Serve.

        Raises:
            RaysysError: The deployed application no longer exists.
        """
        title = f"{self.endpoint.name}-v{self.endpoint.version}"
        if title not in ray_serve.status().applications:
            raise RaysysError(f"the application {title} no longer exists")

    def __call__(self) -> str:
        """URL of the application."""
        return self.endpoint.url


def build(config: ServiceConfig) -> ray_serve.Application:
    """The application for Serve."""
    deployment = ray_serve.deployment(
        ServiceDeployer,
        name="deployer",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2.0,  # replaced after three failures
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=2.0,
    )
    return deployment.bind(config)


def _function(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RaysysError(
            f"graph {path!r}: {error}; use module:function, such as "
            "jobs.flight_graph:endpoint_graph"
        ) from error
