"""Strict check of KubeRay's manifests against its custom resource definitions."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel

from raysys.cluster.config._check import (
    environment,
    secrets_in,
    start_options,
    unknown_key,
    violations,
)
from raysys.cluster.config._schemas import MAPS, METADATA, POD_MONITOR, RAY_LABELS, RAY_RESOURCES
from raysys.errors import RaysysError

if TYPE_CHECKING:
    from pathlib import Path

# Kinds of manifests, with the key of the cluster's specification.
_KINDS = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
_RUNTIME_ENV = (
    "working_dir", "excludes", "py_modules", "py_executable", "pip", "uv", "conda", "image_uri",
    "env_vars", "config", "worker_process_setup_hook",
)  # fmt: skip


def check_manifest(manifest: Mapping[str, Any], crds: Path | None) -> list[str]:
    """Problems of a RayCluster, RayJob, RayService or PodMonitor.

    Raises:
        RaysysError: The definitions are missing.
    """
    kind, version = str(manifest.get("kind")), str(manifest.get("apiVersion"))
    if kind == "PodMonitor":
        return [*violations(POD_MONITOR, manifest)]
    if kind not in _KINDS:
        return [unknown_key(f"kind: {kind}", kind, [*_KINDS, "PodMonitor"])]
    file, key = f"ray.io_{kind.lower()}s.yaml", _KINDS[kind]
    if crds is None or not (crds / file).is_file():
        raise RaysysError(
            f"a check of a {kind} needs KubeRay's {file}: give its folder, or check the manifest "
            "on the cluster: kubectl apply --dry-run=server --validate=strict -f FILE"
        )
    if problems := [*violations(_schema(crds / file, version), manifest)]:
        return problems
    spec = manifest["spec"]
    return [
        *(_cluster(spec[key], f"spec.{key}") if key else _cluster(spec, "spec")),
        *_serve(spec.get("serveConfigV2")),
        *_runtime_env(spec.get("runtimeEnvYAML"), "spec.runtimeEnvYAML"),
        *secrets_in(manifest),
    ]


@functools.cache
def _schema(file: Path, version: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(file.read_text(), Loader=loader)["spec"]
    versions = {f"{definition['group']}/{item['name']}": item for item in definition["versions"]}
    if version not in versions:
        return {"properties": {"apiVersion": {"enum": list(versions)}}, "required": ["apiVersion"]}
    schema = strict(versions[version]["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"metadata": METADATA, "kind": {"const": definition["names"]["kind"]}}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    del schema["properties"]["status"]
    return schema


def strict(schema: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """A Kubernetes definition as a JSON schema without additional properties."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    new = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "items" in new:
        new["items"] = strict(new["items"])
    if "properties" in new:
        new["properties"] = {key: strict(value, key) for key, value in new["properties"].items()}
        new.setdefault("additionalProperties", False)
        keys = new["properties"]
        if "rayStartParams" in keys:  # of a group of nodes
            keys["rayStartParams"] = {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "propertyNames": {"enum": sorted(start_options())},
            }
            keys["labels"] = RAY_LABELS
            keys["resources"] = RAY_RESOURCES
    elif isinstance(new.get("additionalProperties"), Mapping):
        new["additionalProperties"] = strict(new["additionalProperties"])
        if name in MAPS:
            new = {**MAPS[name], "additionalProperties": new["additionalProperties"]}
    return new


def _cluster(spec: Mapping[str, Any], place: str) -> Iterator[str]:
    """Rules beyond the definitions: version of Ray, token, head without tasks, effective labels."""
    import ray

    if spec.get("rayVersion") != ray.__version__:
        yield f"{place}.rayVersion: {spec.get('rayVersion')}, but {ray.__version__} is installed"
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield f"{place}.authOptions: no token is required: set {{mode: token}}"
    head = spec["headGroupSpec"]
    num_cpus = [(head.get("rayStartParams") or {}).get("num-cpus"),
                (head.get("resources") or {}).get("CPU")]  # fmt: skip
    if "0" not in num_cpus:
        yield f'{place}.headGroupSpec: the head runs tasks: set rayStartParams: {{num-cpus: "0"}}'
    groups = spec.get("workerGroupSpecs") or []
    autoscaler = (spec.get("autoscalerOptions") or {}).get("version")
    if any("labels" in group for group in groups) and autoscaler != "v2":
        yield f"{place}.autoscalerOptions.version: labels require v2"
    for group in [head, *groups]:
        name = group.get("groupName", "head")
        for container in group["template"]["spec"]["containers"]:
            image = str(container.get("image"))
            if ray.__version__ not in image.rpartition(":")[2]:
                yield f"{place}, {name}: the tag of {image} does not name Ray {ray.__version__}"
            for variable in container.get("env") or []:
                value = str(variable.get("value", ""))
                yield from environment(variable["name"], value, f"{place}, {name}, env")


def _serve(text: str | None) -> Iterator[str]:
    """Problems of Serve's configuration, including keys that its own models ignore."""
    from ray.serve.schema import ServeDeploySchema

    if text is None:
        return
    place = "spec.serveConfigV2"
    try:
        config = yaml.safe_load(text)
        ServeDeploySchema.model_validate(config)
    except (yaml.YAMLError, ValueError) as error:
        yield f"{place}: {error}"
        return
    yield from _fields(ServeDeploySchema, config, place)


def _fields(model: Any, value: Mapping[str, Any], place: str) -> Iterator[str]:
    """Keys unknown to a pydantic model and to the models nested in it."""
    fields = list(model.model_fields)
    for key, content in value.items():
        if key not in fields:
            yield unknown_key(f"{place}.{key}", key, fields)
            continue
        if key == "runtime_env":
            yield from _runtime_env(content, f"{place}.{key}")
        kinds = [model.model_fields[key].annotation]
        while kinds:
            kind = kinds.pop()
            kinds += get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                for item in content if isinstance(content, list) else [content]:
                    if isinstance(item, Mapping):
                        yield from _fields(kind, item, f"{place}.{key}")


def _runtime_env(source: str | Mapping[str, Any] | None, place: str) -> Iterator[str]:
    """Problems of a runtime environment, whose keys Ray does not check."""
    try:
        value = yaml.safe_load(source) if isinstance(source, str) else source
    except yaml.YAMLError as error:
        yield f"{place}: {error}"
        return
    for key in value or {}:
        if key not in _RUNTIME_ENV:
            yield unknown_key(f"{place}.{key}", key, list(_RUNTIME_ENV))
    for name, text in ((value or {}).get("env_vars") or {}).items():
        yield from environment(name, str(text), place)
