"""The application of clusters/kuberay/service.yaml."""

import importlib
import inspect
import shlex
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray import serve as ray_serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from jobs import service
from raysys import serve, workflow
from raysys.storage import Storage
from tests.clusters import served

MANIFEST = Path(__file__).parents[2] / "clusters/kuberay/service.yaml"


def _application() -> dict:
    manifest = yaml.safe_load(MANIFEST.read_text())
    [application] = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    return application


def test_the_manifests_import_path_and_arguments_build_an_application() -> None:
    application = _application()
    module, _, name = application["import_path"].partition(":")
    build = getattr(importlib.import_module(module), name)
    built = call_user_app_builder_with_args_if_necessary(build, application["args"])
    assert isinstance(built, ray_serve.Application)
    module, _, name = application["args"]["graph"].partition(":")
    graph = getattr(importlib.import_module(module), name)
    assert list(inspect.signature(graph).parameters) == ["storage", "model"]


def test_every_misspelt_argument_is_rejected() -> None:
    args = _application()["args"]
    for key in args:
        wrong = {(name[:-1] if name == key else name): value for name, value in args.items()}
        with pytest.raises(ValidationError):
            call_user_app_builder_with_args_if_necessary(service.build, wrong)


@pytest.fixture
def port(ray_cluster: None) -> Iterator[int]:
    serve.shutdown()  # a gateway of another test would keep its port
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = int(probe.getsockname()[1])
    yield free
    serve.shutdown()


def _health(port: int) -> int:
    url = f"http://127.0.0.1:{port}/-/healthz"
    with urllib.request.urlopen(url, timeout=10) as reply:
        return int(reply.status)


def test_serve_deploys_a_stored_model_behind_the_gateway_and_redeploys_it(
    port: int, storage: Storage
) -> None:
    served.store(storage, 2.0)
    settings = {
        "name": "times", "graph": "tests.clusters.served:graph", "host": "127.0.0.1",
        "port": port, "storage": storage.root, "cpus_per_replica": 0.1, "route": "/double",
    }  # fmt: skip
    application = call_user_app_builder_with_args_if_necessary(service.build, settings)
    ray_serve.start(proxy_location="Disabled")  # as in the manifest
    handle = ray_serve.run(application, name="times", route_prefix=None)
    url = handle.remote().result()
    assert url == f"http://127.0.0.1:{port}/double"
    endpoint = serve.Endpoint("times", 1, f"http://127.0.0.1:{port}", "/double")
    assert endpoint.predict({"x": [1, 2]}) == {"y": [2, 4]}
    # KubeRay's readiness check of the head.
    assert _health(port) == 200

    served.store(storage, 3.0)
    serve.undeploy("times")
    deadline = time.monotonic() + 150
    while True:
        try:
            answer = endpoint.predict({"x": [1, 2]})
            break
        except urllib.error.HTTPError as error:
            if error.code not in (404, 503) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    assert answer == {"y": [3, 6]}


def test_the_job_of_the_manifest_accepts_its_flags() -> None:
    manifest = yaml.safe_load(MANIFEST.with_name("job.yaml").read_text())
    python, dash_m, module, *flags = shlex.split(manifest["spec"]["entrypoint"])
    assert (python, dash_m) == ("python", "-m")
    config = workflow.parse(importlib.import_module(module).Config, flags)
    assert config.serve is False  # the job ends, and its cluster with it
