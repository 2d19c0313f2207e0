"""A job in a repository of its own, with raysys as an installed dependency."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOB = """
from pydantic import BaseModel
from shop import prices
from raysys import workflow


class Config(BaseModel):
    rows: int = 3


def load(run: workflow.Run, rows: int) -> int:
    return prices.total(rows)


def make_job(config: Config) -> workflow.Job:
    job = workflow.Job("shop", config)
    job.step(load, config.rows)
    return job


if __name__ == "__main__":
    workflow.run_job(make_job, Config)
"""


def run(*command: str | Path, folder: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built by the installed setuptools."""
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("tree")
    for path in ROOT.iterdir():  # a build leaves files beside the sources
        if path.name in {"pyproject.toml", "README.md", "LICENSE", "setup.py", "raysys"}:
            (copy / path.name).symlink_to(path)
    code = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"
    run(sys.executable, "-c", code, folder, folder=copy)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_its_licence_types_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {"raysys/py.typed", "raysys/gateway/haproxy.cfg.j2"} <= set(names)
    packages = {name.partition("/")[0] for name in names if "/" in name}
    assert packages == {"raysys", metadata.partition("/")[0]}


def test_a_job_of_another_repository_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    environment, project = tmp_path / "env", tmp_path / "shop-jobs"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Its dependencies are those of this environment; nothing is downloaded.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (project / "shop").mkdir(parents=True)
    (project / "shop" / "prices.py").write_text("def total(rows):\n    return sum(range(rows))\n")
    (project / "shop" / "job.py").write_text(JOB)
    python = environment / "bin" / "python"
    place = run(python, "-c", "import raysys; print(raysys.__file__)", folder=project)
    assert Path(place.strip()).is_relative_to(environment)
    raysys = [python, "-c", "from raysys.cli import main; main()"]
    assert "raysys 0." in run(*raysys, "--version", folder=project)
    steps = run(*raysys, "run", "shop/job.py", "--steps", folder=project)
    assert steps == "· load  waiting\n"
    assert "--rows int" in run(python, "-m", "shop.job", "--help", folder=project)
    # The same key as in any other environment: the job's code counts, not raysys' place.
    code = "from shop import job; j = job.make_job(job.Config()); print(j.key_of(j.steps['load']))"
    keys = {run(python, "-c", code, folder=project) for _ in range(2)}
    assert len(keys) == 1
