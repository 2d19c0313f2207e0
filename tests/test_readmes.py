"""Every Python block of every README runs, in one namespace for each; jobs run as scripts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import raysys
from raysys import serve

ROOT = Path(raysys.__file__).parents[1]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("raysys/**/README.md"))]
TEXTS = [*READMES, *sorted(ROOT.glob("*/*.md"))]


def run_as_script(block: str, folder: Path) -> None:
    file = folder / "job.py"
    file.write_text(block)
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, file], cwd=folder, env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [*READMES, *sorted(ROOT.glob("*/*.md"))],
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_links_lead_somewhere(text: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", text.read_text())
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (text.parent / target).exists()]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_examples_of_a_readme_run(
    readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(), flags=re.M | re.S)
    assert blocks, f"{readme} has no example"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path / "storage"))
    namespace: dict[str, object] = {"__name__": "example"}
    try:
        for block in blocks:
            if "__main__" in block:
                run_as_script(block, tmp_path)
            else:
                exec(compile(block, str(readme), "exec"), namespace)
    finally:
        if any("deploy(" in block for block in blocks):
            serve.shutdown()
