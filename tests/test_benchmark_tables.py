"""Tables of measurements in the READMEs."""

from pathlib import Path

import pytest

from benchmarks.tables import READMES, TABLES, render


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_the_tables_are_those_of_the_committed_results(path: Path) -> None:
    assert path.read_text() == render(path.read_text()), "run `python -m benchmarks.tables`"


def test_each_table_stands_in_a_readme() -> None:
    texts = "".join(path.read_text() for path in READMES)
    assert [name for name in TABLES if f"<!-- figures: {name} -->" not in texts] == []
