import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raysys

ROOT = Path(raysys.__file__).parent

# Which packages of raysys each may import, beside itself: the arrow of the design.
_LOW = {
    "arguments", "audit", "console", "errors", "identity", "imports", "ray_internals", "secrets",
    "settings", "splitmix", "storage", "telemetry",
}  # fmt: skip
_HIGH = _LOW | {"cluster", "data", "evaluate"}
ALLOWED = {
    "arguments": {"errors"},
    "audit": {"errors", "imports", "ray_internals", "secrets", "storage"},
    "console": {"imports"},
    "errors": set(),
    "identity": {"errors", "imports", "storage"},
    "imports": set(),
    "ray_internals": {"imports"},
    "secrets": {"errors"},
    "settings": {"errors"},
    "splitmix": set(),
    "storage": {"errors", "imports", "secrets", "telemetry"},
    "telemetry": {"errors", "imports", "ray_internals"},
    "tracking": _LOW,
    "evaluate": {"errors", "imports"},
    "cluster": _LOW,
    "data": _LOW | {"cluster"},
    "features": _HIGH,
    "index": _HIGH,
    "labels": _HIGH,
    "models": _HIGH | {"tracking"},
    "train": _HIGH | {"tracking"},
    "tune": _HIGH | {"tracking", "train"},
    "gateway": _LOW | {"cluster"},
    "serve": _HIGH | {"gateway", "models", "index"},
    "workflow": _HIGH | {"models", "tracking"},
    "cli": _HIGH | {"gateway", "index", "models", "train", "tune", "serve", "tracking", "workflow"},
}
HEAVY = {"deepspeed", "matplotlib", "mlflow", "modin", "ray.serve", "ray.train", "torch", "xgboost"}


def _imports() -> Iterator[tuple[str, Path, str]]:
    """Each import of a name in raysys or jobs: the importing package, its file, the name."""
    for file in sorted(ROOT.rglob("*.py")):
        package = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.split(".")[0] in ("raysys", "jobs"):
                    yield package, file, name


@pytest.mark.parametrize(
    ("module", "also"),
    [("raysys", {"ray"}), ("raysys.tracking", set()),
     # What each shard and replica loads when it starts, or starts again.
     ("raysys.data", {"polars"}), ("raysys.train", {"polars"}),
     ("raysys.index", {"polars"}), ("raysys.serve", {"jinja2", "joblib", "polars"})],
)  # fmt: skip
def test_import_loads_nothing_heavy(module: str, also: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY | also!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_the_command_line_loads_no_library_for_its_help() -> None:
    code = "import sys, raysys.cli; print(sorted({'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_every_package_has_its_place_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    modules = {path.stem for path in ROOT.glob("[!_]*.py")}
    assert packages | modules == set(ALLOWED)


def test_imports_point_along_the_arrow_of_the_design() -> None:
    against = [
        f"{file.relative_to(ROOT)}: {name}"
        for package, file, name in _imports()
        if name.split(".")[0] == "jobs"
        or name.split(".")[1] not in ALLOWED.get(package, set()) | {package}
    ]
    assert against == []


def test_no_package_reaches_into_the_private_modules_of_another() -> None:
    inside = [
        f"{file.relative_to(ROOT)}: {name}"
        for package, file, name in _imports()
        if name.split(".")[1] != package and any(part.startswith("_") for part in name.split("."))
    ]
    assert inside == []
