"""Every route of Ray's dashboard and agents and every method of its services, read from Ray."""

import importlib
import pkgutil
import re
from pathlib import Path

import grpc
import ray.core.generated
import ray.dashboard
import ray.serve.generated

_ROUTE = re.compile(r'@routes\.(get|post|put|delete)\(\s*f?"([^"]+)"')
_DASHBOARD = Path(ray.dashboard.__file__).parent
# Not among the Python stubs: objects go between raylets alone.
_OBJECTS = [f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull")]


def routes(files: str) -> list[tuple[str, str]]:
    """Method and path of every route in some of the dashboard's files, placeholders filled."""
    found = set()
    for file in _DASHBOARD.rglob(files):
        for method, path in _ROUTE.findall(file.read_text()):
            found.add((method.upper(), re.sub(r"\{[^}]+\}", "x", path)))
    return sorted(found)


def methods() -> list[str]:
    """Full names of the methods of all gRPC services that Ray has."""
    found = list(_OBJECTS)
    packages = (ray.core.generated, ray.serve.generated)
    for module in pkgutil.walk_packages([path for one in packages for path in one.__path__]):
        if module.name.endswith("_pb2"):
            package = "serve" if module.name == "serve_pb2" else "core"
            stubs = importlib.import_module(f"ray.{package}.generated.{module.name}")
            for service in stubs.DESCRIPTOR.services_by_name.values():
                found += [f"/{service.full_name}/{method.name}" for method in service.methods]
    return sorted(found)


def call(address: str, names: list[str], token: str | None) -> dict[str, grpc.StatusCode]:
    """What each method answers to an empty message."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    answers = {}
    with grpc.insecure_channel(address) as channel:
        for name in names:
            try:
                channel.unary_unary(name)(b"", timeout=10, metadata=metadata)
                answers[name] = grpc.StatusCode.OK
            except grpc.RpcError as error:
                answers[name] = error.code()
    return answers
