"""One gateway for the tests of this package, and the deployments that several of them share."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from raysys.serve import Endpoint, GatewayOptions, Graph, deploy, shutdown
from raysys.storage import Storage
from tests.ports import free_ports
from tests.serve.serving import mixed_graph

Deployer = Callable[..., Endpoint]


@pytest.fixture(scope="package")
def serving_storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Where the gateway looks for API keys."""
    return Storage(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="package")
def deployer(ray_cluster: None, serving_storage: Storage) -> Iterator[Deployer]:
    """`deploy` behind a gateway on free ports, with replicas that ask for little."""
    shutdown()  # a gateway of other tests would keep its own ports
    port, grpc_port = free_ports(2)
    gateway = GatewayOptions(port=port, grpc_port=grpc_port, storage=serving_storage)

    def deploy_small(name: str, graph: Graph | Mapping[str, Graph], **options: Any) -> Endpoint:
        return deploy(name, graph, **{"cpus_per_replica": 0.1, "gateway": gateway, **options})

    yield deploy_small
    shutdown()


@pytest.fixture(scope="package")
def mixed(deployer: Deployer) -> Endpoint:
    """Columns of all kinds."""
    return deployer("mixed", mixed_graph())
