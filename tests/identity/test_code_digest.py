"""The code that counts: modules are written, changed and digested again."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa
import pytest
from pydantic import BaseModel

from raysys.data import Lineage
from raysys.data._lineage import code_of
from raysys.identity import _code_digest, code_digest
from raysys.identity._code_digest import forget_sources
from raysys.serve import Array, Graph
from raysys.storage import Storage
from raysys.workflow import Job

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

def predict(rows):
    return helpers.clean(rows)

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


class Settings(BaseModel):
    rows: int = 1


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
        forget_sources()
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.startswith(self.package)]:
            del sys.modules[name]
        return code_digest(self.function(function))

    def function(self, name: str) -> Callable[..., Any]:
        main: Any = importlib.import_module(f"{self.package}.main")
        return getattr(main, name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Project(tmp_path, f"coded_{tmp_path.name.replace('-', '_')}")
    forget_sources()


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
    real = _code_digest._version
    monkeypatch.setattr(
        _code_digest, "_version", lambda name: "9" if name == "numpy" else real(name)
    )
    assert project.digest() != before
    assert project.digest("other") == project.digest("other")


def test_a_helper_counts_for_step_key_lineage_and_graph_alike(
    project: Project, tmp_path: Path
) -> None:
    def identities() -> list[str]:
        project.digest()  # imports the modules anew
        step, predict = project.function("step"), project.function("predict")
        job = Job("job", Settings(), Storage(str(tmp_path / "root")))
        graph = Graph(inputs={"rows": Array("int64")}, nodes={"y": predict}, output="y")
        return [
            job.key_of(job.step(step, rows=1)),
            Lineage("map", code=code_of(step)).id,
            graph.fingerprint,
        ]

    before = identities()
    assert identities() == before
    project.edit("helpers", "return 3", "return 4")  # reached by none of them
    assert identities() == before
    project.edit("deep", "x - 1", "x - 2")
    assert all(now != then for now, then in zip(identities(), before, strict=True))


def test_lambdas_of_one_function_differ() -> None:
    functions = [lambda x: x + 1, lambda x: x + 2, lambda y: y.a, lambda y: y.b]
    assert len({code_digest(function) for function in functions}) == len(functions)


def test_a_function_pickled_by_value_keeps_its_digest() -> None:
    def inner(x: int) -> int:
        return helper(x)

    def helper(x: int) -> int:
        return x

    for function in (inner, lambda x: helper(x)):
        copy = cloudpickle.loads(cloudpickle.dumps(function))
        assert code_digest(copy) == code_digest(function)


def test_without_a_file_bytecode_counts_with_that_of_helpers() -> None:
    def made(helper: str, limit: int = 1) -> str:
        names: dict[str, Any] = {"__name__": "nowhere"}
        exec(f"LIMIT = {limit}\ndef helper(x): return {helper}", names)
        exec("def made(x):\n    '''Text.'''\n    return helper(x) + LIMIT", names)
        return code_digest(names["made"])

    assert made("x") == made("x")
    assert len({made("x"), made("x + 1"), made("x", 2)}) == 3


def test_a_function_of_a_compiled_extension_has_a_digest() -> None:
    # The module of Cython's methods is created at run time and has no spec.
    assert code_digest(pa.Table.slice) != code_digest(pa.Table.select)


STARRED = """
from {package}.stars import *
import sys
try:
    from {package}.helpers import clean
except ImportError:
    from {package}.deep import down as clean
if sys.version_info > (3, 0):
    import {package}.deep as below
    if True:
        from {package}.helpers import SCALE as FACTOR

def step(run):
    return scale(below.down(run)) * FACTOR + constant + clean(run) + sqrt(4) + above(1)
"""
STARS = """
from math import *
from {package}.upper import *

constant = 1

def scale(x):
    return x * 2

def unused(x):
    return x
"""


@pytest.mark.parametrize(
    ("module", "old", "new", "counts"),
    [
        ("stars", "x * 2", "x * 3", True),
        ("stars", "constant = 1", "constant = 2", True),
        ("stars", "return x\n", "return -x\n", False),
        ("upper", "x + 7", "x + 8", True),
        ("helpers", "SCALE = 2", "SCALE = 3", True),
        ("helpers", "return deep.down(x)", "return deep.down(x) + 1", True),
        ("deep", "x - 1", "x - 2", True),
    ],
)
def test_names_of_star_imports_and_of_branches_count(
    project: Project, module: str, old: str, new: str, counts: bool
) -> None:
    texts = ("main", STARRED), ("stars", STARS), ("upper", "def above(x):\n    return x + 7\n")
    for name, text in texts:
        project.write(name, text.replace("{package}", project.package))
    before = project.digest()
    assert project.digest() == before
    project.edit(module, old, new)
    assert (project.digest() != before) is counts


def test_a_name_without_a_source_counts_as_changed_and_says_so(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("main", "globals()['hidden'] = len\n\ndef step(run):\n    return hidden(run)\n")
    before = project.digest()
    assert "no source defines 'hidden'" in caplog.text
    code = f"from {project.package}.main import step; from raysys.identity import code_digest; "
    other = subprocess.run(
        [sys.executable, "-c", code + "print(code_digest(step))"], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": f"{project.folder.parent}:{Path.cwd()}"},
    )  # fmt: skip
    assert other.stdout.strip() != before


TYPED = """
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from {package}.deep import Frame

class Rows:
    table: pd.DataFrame

def step(run):
    frame: pd.DataFrame = run
    other: Frame = frame
    return Rows, other
"""


def test_names_of_annotations_alone_have_no_source_and_need_none(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("main", TYPED.replace("{package}", project.package))
    before = project.digest()
    _code_digest._unresolved.cache_clear()
    assert project.digest() == before
    assert not caplog.text
