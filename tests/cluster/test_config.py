"""Checks of the files of clusters/ and of every misspelt key in them."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raysys.cluster import check_config
from raysys.cluster.config._check import check_launcher
from raysys.cluster.config._manifests import check_manifest
from raysys.errors import RaysysError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters"
CRDS = ROOT.parent / "shared/kuberay-crds"
LAUNCHERS = sorted(FOLDER.glob("*.yaml"))
MANIFESTS = sorted(FOLDER.glob("kuberay/*.yaml"))
# Names chosen by the author of a file: node types and plain labels.
_CHOSEN = [("available_node_types", "*"), ("metadata", "labels", "*")]

needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="needs KubeRay's definitions")


def _read(file: Path) -> dict[str, Any]:
    # Copies the values shared by anchors, so that a test changes one place at a time.
    return json.loads(json.dumps(yaml.safe_load(file.read_text())))


def _keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from _keys(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _keys(item, (*path, index))


def _is_chosen(path: tuple[Any, ...]) -> bool:
    return any(
        len(path) == len(chosen) and all(b in ("*", a) for a, b in zip(path, chosen, strict=True))
        for chosen in _CHOSEN
    )


def _misspelt(config: dict[str, Any], path: tuple[Any, ...], key: str) -> dict[str, Any]:
    copy = json.loads(json.dumps(config))
    parent = copy
    for part in path[:-1]:
        parent = parent[part]
    parent[key] = parent.pop(path[-1])
    return copy


def _undetected(config: dict[str, Any], check: Callable[[dict[str, Any]], list[str]]) -> list[Any]:
    """Misspelt keys that a check accepts: one typo at each path, all typos at new kinds of path."""
    tried: set[tuple[Any, ...]] = set()
    undetected = []
    paths = [path for path in _keys(config) if not _is_chosen(path)]
    assert len(paths) > 10
    for path in paths:
        kind = tuple(part for part in path if isinstance(part, str))
        typos = sorted(_typos(path[-1]))
        for typo in typos[:1] if kind in tried else typos:
            if not check(_misspelt(config, path, typo)):
                undetected.append((path, typo))
        tried.add(kind)
    return undetected


def _typos(key: str) -> set[str]:
    swapped = key[:-2] + key[-1] + key[-2]
    other_case = key[0].swapcase() + key[1:]
    return {key[:-1], key[0] + key, swapped, other_case} - {key, ""}


def test_there_is_a_file_for_each_platform() -> None:
    assert {file.name for file in LAUNCHERS} == {
        "aws.yaml", "gcp.yaml", "local.yaml", "on-prem.yaml",
    }  # fmt: skip
    assert {file.name for file in MANIFESTS} == {
        "cluster.yaml", "job.yaml", "monitor.yaml", "service.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.name)
def test_ray_accepts_the_launcher_file(file: Path) -> None:
    validate_config(prepare_config(_read(file)))


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.name)
def test_the_launcher_file_is_valid(file: Path) -> None:
    assert check_config(file) == []


@needs_crds
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_the_manifest_is_valid(file: Path) -> None:
    assert check_config(file, crds=CRDS) == []


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.name)
def test_every_misspelt_key_of_a_launcher_file_is_detected(file: Path) -> None:
    assert _undetected(_read(file), check_launcher) == []


@needs_crds
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_every_misspelt_key_of_a_manifest_is_detected(file: Path) -> None:
    assert _undetected(_read(file), lambda manifest: check_manifest(manifest, CRDS)) == []


@needs_crds
def test_a_misspelt_key_in_embedded_yaml_is_detected() -> None:
    manifest = _read(FOLDER / "kuberay/service.yaml")
    serve = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    # `args` of an application are checked by its builder: tests/clusters/test_service.py.
    paths = [path for path in _keys(serve) if "args" not in path[:-1]]
    for path in paths:
        for typo in _typos(path[-1]):
            manifest["spec"]["serveConfigV2"] = yaml.safe_dump(_misspelt(serve, path, typo))
            assert check_manifest(manifest, CRDS), (path, typo)
    job = _read(FOLDER / "kuberay/job.yaml")
    job["spec"]["runtimeEnvYAML"] = "workingdir: local:///home/ray/raysys"
    assert check_manifest(job, CRDS) == [
        "spec.runtimeEnvYAML.workingdir: unknown key; did you mean working_dir?"
    ]


def _changed(name: str, *changes: tuple[str, str]) -> list[str]:
    text = (FOLDER / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return check_launcher(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("--metrics-export-port", "--metric-export-port", "did you mean metrics-export-port?"),
        ("--env RAY_AUTH_MODE=token", "--env RAY_AUTH_MDOE=token", "did you mean RAY_AUTH_MODE?"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "disables authentication"),
        ("--env RAY_AUTH_MODE=token", "--init", "no token is required"),
        ("--env RAYSYS_STORAGE", "--evn RAYSYS_STORAGE", "did you mean env?"),
        (
            "2.60.0-py311-gpu",
            "2.59.0-py311-gpu",
            "Ray 2.59.0, but 2.60.0 is installed",
        ),
        ("--num-cpus=0", "--num-cpus=4", "the head runs tasks"),
        ("ray.io/market-type: spot", "ray.io/market-type: sopt", "is not one of"),
        ("/home/ray/raysys: .", "/home/ray/raysis: .", "not used anywhere else"),
        ("s3://YOUR", "s3://AKIA:hunter2@YOUR", "a secret"),
    ],
)
def test_problems_beyond_the_schema_are_detected(old: str, new: str, message: str) -> None:
    problems = _changed("aws.yaml", (old, new))
    assert any(message in problem for problem in problems), problems
    assert "hunter2" not in "".join(problems)


def test_exports_and_labels_of_on_prem_are_checked() -> None:
    [problem] = _changed("on-prem.yaml", ("export RAYSYS_STORAGE", "export RAYSYS_STROAGE"))
    assert "unknown variable RAYSYS_STROAGE; did you mean RAYSYS_STORAGE?" in problem
    problems = _changed("on-prem.yaml", ("ray.io/market-type", "ray.io/markt-type"))
    assert len(problems) == 2
    assert all("unknown key" in problem for problem in problems)


@needs_crds
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{mode: token}", "{mode: disabled}", "no token is required"),
        ("RAYSYS_STORAGE", "RAYSYS_STROAGE", "did you mean RAYSYS_STORAGE?"),
        ("2.60.0-cpu", "latest", "does not name Ray 2.60.0"),
        ('num-cpus: "0"', 'num-cpus: "4"', "the head runs tasks"),
        ("version: v2", "version: v1", "labels require v2"),
        ("maxReplicas: 16", "maxReplicas: many", "is not of type 'integer'"),
        ("http://mlflow", "http://ray:hunter2@mlflow", "is a secret"),
    ],
)
def test_problems_beyond_the_definitions_are_detected(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (FOLDER / "kuberay/cluster.yaml").read_text()
    assert old in text
    (tmp_path / "cluster.yaml").write_text(text.replace(old, new))
    problems = check_config(tmp_path / "cluster.yaml", crds=CRDS)
    assert any(message in problem for problem in problems), problems
    assert "hunter2" not in "".join(problems)


def test_a_file_without_settings_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RaysysError, match="cannot be read as YAML"):
        check_config(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RaysysError, match="has no settings"):
        check_config(tmp_path / "list.yaml")
    with pytest.raises(RaysysError, match="kubectl apply --dry-run=server"):
        check_config(FOLDER / "kuberay/cluster.yaml")


def test_the_copy_of_the_repository_on_nodes_excludes_secrets() -> None:
    for name in ("aws.yaml", "gcp.yaml", "on-prem.yaml"):
        config = _read(FOLDER / name)
        assert {".git", ".venv", ".env*", "*.pem", "*.key", "secrets"} <= set(
            config["rsync_exclude"]
        )
        assert config["rsync_filter"] == [".gitignore"]


def test_every_path_in_the_documents_exists() -> None:
    text = (FOLDER / "THREATS.md").read_text() + (FOLDER / "README.md").read_text()
    paths = set(re.findall(r"`((?:tests|jobs|clusters|kuberay)/[\w/.-]+)`", text))
    assert len(paths) > 10
    missing = [path for path in paths if not ((ROOT / path).exists() or (FOLDER / path).exists())]
    assert missing == []


def test_the_documented_tls_and_secret_settings_are_valid() -> None:
    for name in ("aws.yaml", "gcp.yaml", "on-prem.yaml"):
        text = (FOLDER / name).read_text()
        text = re.sub(r"# (-? ?(--env|export) RAY_(USE_)?TLS)", r"\1", text)
        text = re.sub(r"# (/home/ray/(tls|secrets):)", r"\1", text)
        assert "\n  /home/ray/tls: ~/.raysys/tls" in text
        text = text.replace("ray start", ". /home/ray/secrets/env; ray start")
        assert check_launcher(yaml.safe_load(text)) == []
