"""What counts as the code of a step: written as modules, changed, digested again."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raysys.errors import RaysysError
from raysys.workflow import _code_digest as _code

MAIN = '''
import {package}.helpers as helpers
from {package}.helpers import SCALE, Base
import numpy as np

LIMIT = 5

class Model(Base):
    rate: float = 0.5

def step(run, rows: int):
    """What it does."""
    def inner(x):
        return np.abs(x) * SCALE
    return Model, helpers.clean(inner(rows)), LIMIT

def other(run):
    return 1
'''
HELPERS = """
SCALE = 2

class Base:
    size = 1

def clean(x):
    from {package} import deep
    return deep.down(x)

def unused():
    return 3
"""
DEEP = "def down(x):\n    return x - 1\n"


class Project:
    """A package of three modules below a folder of their own."""

    def __init__(self, folder: Path, package: str) -> None:
        self.package, self.folder = package, folder / package
        self.folder.mkdir()
        for name, text in (("main", MAIN), ("helpers", HELPERS), ("deep", DEEP), ("__init__", "")):
            self.write(name, text.replace("{package}", package))

    def write(self, name: str, text: str) -> None:
        (self.folder / f"{name}.py").write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.folder / f"{name}.py"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    def digest(self, function: str = "step") -> str:
        _code._module.cache_clear()
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.startswith(self.package)]:
            del sys.modules[name]
        main: Any = importlib.import_module(f"{self.package}.main")
        return _code.code_digest(getattr(main, function))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Project(tmp_path, f"coded_{tmp_path.name.replace('-', '_')}")
    _code._module.cache_clear()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("main", "* SCALE", "+ SCALE"),
        ("main", "LIMIT = 5", "LIMIT = 6"),
        ("main", "rate: float = 0.5", "rate: float = 0.6"),
        ("helpers", "SCALE = 2", "SCALE = 3"),
        ("helpers", "size = 1", "size = 2"),
        ("deep", "x - 1", "x - 2"),
        ("deep", "def down", "print('loaded')\ndef down"),
    ],
)
def test_what_a_step_reaches_counts(project: Project, module: str, old: str, new: str) -> None:
    before = project.digest()
    assert project.digest() == before
    project.edit(module, old, new)
    assert project.digest() != before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("main", "return 1", "return 2"),
        ("main", "What it does.", "What it is for."),
        ("main", "rows: int", "rows:  float"),
        ("helpers", "return 3", "return 4"),
    ],
)
def test_what_it_does_not_reach_does_not(project: Project, module: str, old: str, new: str) -> None:
    before = project.digest()
    project.edit(module, old, new)
    assert project.digest() == before


def test_the_version_of_a_package_counts(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = project.digest()
    real = _code._version
    monkeypatch.setattr(_code, "_version", lambda name: "9" if name == "numpy" else real(name))
    assert project.digest() != before
    assert project.digest("other") == project.digest("other")


def test_code_without_a_file_is_refused() -> None:
    names: dict[str, Callable[[], int]] = {}
    exec("def made(): return 1", {"__name__": "nowhere"}, names)
    with pytest.raises(RaysysError, match="has no source file"):
        _code.code_digest(names["made"])
