"""Every `>>>` example of a docstring gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import raysys

ROOT = Path(raysys.__file__).parent
MODULES = [
    ".".join(("raysys", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for file in sorted(ROOT.rglob("*.py"))
    if ">>>" in file.read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_hold(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
