"""Every Python block of every package's README runs, the blocks of one README in one namespace."""

import re
from pathlib import Path

import pytest

import raysys
from raysys import serve

PACKAGES = Path(raysys.__file__).parent
READMES = sorted(PACKAGES.rglob("README.md"))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_example_of_a_package_runs(
    readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(), flags=re.M | re.S)
    assert blocks, f"{readme} has no example"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path / "storage"))
    namespace: dict[str, object] = {"__name__": "example"}
    deploys = any("deploy(" in block for block in blocks)
    try:
        for block in blocks:
            exec(compile(block, str(readme), "exec"), namespace)
    finally:
        if deploys:
            serve.shutdown()
