"""Deferred imports."""

import pickle
import subprocess
import sys
import textwrap

import pytest

from raysys.imports import lazy_import


def test_a_module_is_imported_at_the_first_use_of_an_attribute() -> None:
    code = """
        import sys
        from raysys.imports import lazy_import
        calendar = lazy_import("calendar")
        assert "calendar" not in sys.modules
        assert calendar.isleap(2024)
        assert "calendar" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_an_attribute_is_set_in_the_module_itself() -> None:
    import calendar

    original = calendar.isleap
    try:
        lazy_import("calendar").isleap = lambda year: "patched"
        assert calendar.isleap(2024) == "patched"
    finally:
        calendar.isleap = original


def test_a_deferred_module_can_be_pickled_and_a_missing_one_is_named() -> None:
    assert pickle.loads(pickle.dumps(lazy_import("calendar"))).isleap(2024)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = lazy_import("no_such_module").attribute
