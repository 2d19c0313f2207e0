"""Strict check of cluster configuration files.

Ray's schema and Kubernetes ignore many misspelt keys; here they are errors. So are settings that
start a cluster without authentication or with another version of Ray.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from raysys.cluster.config._schemas import PROVIDERS, RAY_LABELS, RAY_RESOURCES
from raysys.errors import RaysysError
from raysys.imports import lazy_import
from raysys.ray_internals import autoscaler
from raysys.secrets import holds_secret, shown

jsonschema = lazy_import("jsonschema")

_VARIABLES = (
    "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS",
    "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT", "RAYSYS_STORAGE",
    "RAYSYS_GIT_COMMIT", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "POLARS_MAX_THREADS",
)  # fmt: skip
_DOCKER_OPTIONS = (
    "add-host", "cap-add", "cap-drop", "cpus", "device", "env", "env-file", "gpus", "init", "ipc",
    "label", "log-driver", "log-opt", "memory", "network", "pids-limit", "privileged", "read-only",
    "runtime", "security-opt", "shm-size", "sysctl", "tmpfs", "ulimit", "user", "volume", "workdir",
)  # fmt: skip


def check_config(path: str | Path, *, crds: str | Path | None = None) -> list[str]:
    """Problems of a configuration for `ray up`, or of a manifest for KubeRay.

    Args:
        path: The file.
        crds: Folder of KubeRay's custom resource definitions, such as `ray.io_rayclusters.yaml`;
            required for manifests.

    Returns:
        The problems, each with its location; empty for a valid file.

    Raises:
        RaysysError: The file is not a configuration in YAML, or the definitions are missing.
    """
    try:
        loaded = [*yaml.safe_load_all(Path(path).read_text())]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RaysysError(f"{path} cannot be read as YAML: {error}") from error
    documents = [document for document in loaded if document is not None]
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise RaysysError(f"{path} has no settings: see clusters/ for examples")
    problems = []
    for document in documents:
        if "kind" in document or "apiVersion" in document:
            from raysys.cluster.config._manifests import check_manifest

            problems += check_manifest(document, None if crds is None else Path(crds))
        else:
            problems += check_launcher(document)
    return problems


def check_launcher(config: Mapping[str, Any]) -> list[str]:
    """Problems of a configuration for `ray up`."""
    provider = (config.get("provider") or {}).get("type")
    if provider not in PROVIDERS:
        return [f"provider.type: {provider!r} is not one of {', '.join(PROVIDERS)}"]
    if problems := [*violations(_launcher_schema(provider), config)]:
        return problems
    error = autoscaler.config_error(config)
    return [
        *([f"Ray rejects the file: {error}"] if error else []),
        *_commands(config),
        *_docker(config),
        *_mounts(config),
        *secrets_in(config),
        *_policy(config, provider),
    ]


def violations(schema: Mapping[str, Any], value: Any) -> Iterator[str]:
    """Violations of a JSON schema, each with its location."""
    for error in jsonschema.Draft7Validator(schema).iter_errors(value):
        place = ".".join(str(part) for part in error.absolute_path)
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            properties = list(error.schema.get("properties", {}))
            for key in error.instance:
                if key not in properties:
                    yield unknown_key(f"{place}.{key}".lstrip("."), str(key), properties)
        elif error.validator == "pattern" and "propertyNames" in error.absolute_schema_path:
            yield f"{place}.{error.instance}: unknown key".lstrip(".")
        else:
            yield f"{place or 'the file'}: {error.message[:300]}"


def unknown_key(place: str, key: str, valid: list[str]) -> str:
    """Message for an unknown key, with the closest valid one."""
    near = get_close_matches(key, valid, 1)
    return f"{place}: unknown key" + (f"; did you mean {near[0]}?" if near else "")


@functools.cache
def start_options() -> dict[str, str]:
    """Flags of `ray start` by name, from Ray's command line."""
    from ray.scripts.scripts import start

    flags = [flag for option in start.params for flag in [*option.opts, *option.secondary_opts]]
    return {flag.lstrip("-"): flag for flag in flags}


def environment(name: str, value: str, place: str) -> Iterator[str]:
    """Problems of an environment variable of Ray's processes."""
    near = get_close_matches(name, _VARIABLES, 1, cutoff=0.85)
    if name not in _VARIABLES and near:
        yield f"{place}: unknown variable {name}; did you mean {near[0]}?"
    if value and holds_secret(name, value):
        yield f"{place}: {name} is a secret and must not be in the file: see clusters/README.md"
    if name == "RAY_AUTH_MODE" and value != "token":
        yield f"{place}: RAY_AUTH_MODE={value} disables authentication: set token"


def secrets_in(value: Any) -> Iterator[str]:
    """Passwords in URIs."""
    for place, text in _texts(value):
        if shown(text) != text:
            yield f"{place}: a password must not be in the file: see clusters/README.md"


@functools.cache
def _launcher_schema(provider: str) -> dict[str, Any]:
    import ray.autoscaler

    file = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    schema = json.loads(file.read_text())
    options, machine = PROVIDERS[provider]
    keys = schema["properties"]
    keys["provider"] = options
    node = keys["available_node_types"]["patternProperties"][".*"]["properties"]
    node |= {"node_config": machine, "labels": RAY_LABELS}
    node["resources"] = {**RAY_RESOURCES, "additionalProperties": {"type": "integer", "minimum": 0}}
    keys["metadata"] = {}
    del keys["no_restart"]  # for Ray's internal use
    return schema


def _commands(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in config.get(key) or []:
            for start in re.findall(r"ray start([^;&|]*)", command):
                for flag in re.findall(r"(?<=\s)--([A-Za-z-]+)", start):
                    if flag not in start_options():
                        yield unknown_key(f"{key}: --{flag}", flag, list(start_options()))
            for labels in re.findall(r"--labels[= ]'?\"?([^\s'\"]*)", command):
                pairs = dict(pair.partition("=")[::2] for pair in labels.split(","))
                for problem in violations(RAY_LABELS, pairs):
                    yield f"{key}: --labels {problem}"
    for place, text in _texts(config):
        for name, value in re.findall(r"(?m)^\s*export (\w+)=(\S*)", text):
            yield from environment(name, value, place)


def _docker(config: Mapping[str, Any]) -> Iterator[str]:
    docker = config.get("docker") or {}
    types = (config.get("available_node_types") or {}).values()
    options = [
        (f"docker.{key}", option.strip())
        for section in [docker, *(kind.get("docker") or {} for kind in types)]
        for key in ("run_options", "head_run_options", "worker_run_options")
        for option in section.get(key) or []
    ]
    for place, option in options:
        mark = "=" if "=" in option.split()[0] else " "
        name, _, value = option.removeprefix("--").partition(mark)
        if option.startswith("--") and name not in _DOCKER_OPTIONS:
            yield unknown_key(f"{place}: --{name}", name, list(_DOCKER_OPTIONS))
        if name == "env" and "=" in value:
            variable, _, content = value.strip().partition("=")
            yield from environment(variable, content, place)


def _mounts(config: Mapping[str, Any]) -> Iterator[str]:
    """Targets of `file_mounts` that are not used: their names are probably misspelt."""
    texts = " ".join(text for place, text in _texts(config) if not place.startswith("file_mounts"))
    for target in config.get("file_mounts") or {}:
        if not re.search(rf"{re.escape(target)}(?![\w.-])", texts):
            yield f"file_mounts.{target}: not used anywhere else in the file"


def _policy(config: Mapping[str, Any], provider: str) -> Iterator[str]:
    """Rules for every cluster: this version of Ray, token authentication, a head without tasks."""
    import ray

    texts = [text for _, text in _texts(config)]
    for text in texts:
        for tag in re.findall(r"rayproject/ray(?:-ml)?:([\w.-]+)", text):
            if tag.split("-")[0] != ray.__version__:
                yield f"the image has Ray {tag.split('-')[0]}, but {ray.__version__} is installed"
    if provider == "external":  # started by hand, see local.yaml
        return
    if not any("RAY_AUTH_MODE=token" in text for text in texts):
        yield "no token is required: set RAY_AUTH_MODE=token on all nodes"
    starts = [text for text in config.get("head_start_ray_commands") or [] if "ray start" in text]
    if not all("--num-cpus=0" in text for text in starts) or not starts:
        yield "head_start_ray_commands: the head runs tasks: use `ray start --head --num-cpus=0`"


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a value, each with its location."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(item, f"{place}.{key}".lstrip("."))
