"""The command line itself."""

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from raysys.cli import app


def test_the_version_is_the_package_s() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"raysys {version('raysys')}\n")


@pytest.mark.parametrize(
    "command", [[], ["submit"], ["runs"], ["runs", "show"], ["schedule", "add"]]
)
def test_help_is_short_too(command: list[str]) -> None:
    short, long = (CliRunner().invoke(app, [*command, flag]) for flag in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert "Usage:" in short.output
    assert short.output == long.output
