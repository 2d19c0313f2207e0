"""A second submission of the recommender in which nothing has changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.operations.submission import LEFT_BEHIND, RAYSYS, TREE, head

if TYPE_CHECKING:
    from benchmarks._figures import Report


def second(report: Report, quick: bool) -> None:
    """Submit twice; every cacheable step of the second is to be skipped."""
    flags = ["--epochs", "2", "--retrieval-trials", "2", "--ranker-trials", "2"] if quick else []
    with tempfile.TemporaryDirectory(prefix="raysys-operations-") as folder:
        place = Path(folder)
        tree = place / "elsewhere"
        shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        with head(place) as environment:
            seconds = []
            for _ in range(2):
                started = time.perf_counter()
                command = [RAYSYS, "submit", "jobs/recommender.py", "--", *flags]
                subprocess.run(command, env=environment, cwd=tree, check=True, stdout=sys.stderr)
                seconds.append(time.perf_counter() - started)
        runs = sorted((place / "storage" / "runs").iterdir(), key=lambda run: run.name)
        steps = json.loads((runs[-1] / "run.json").read_text())["steps"]
    again = [step["name"] for step in steps if step["state"] != "skipped"]
    report.add("first submission of the recommender", seconds[0], "s")
    report.add("second, unchanged", seconds[1], "s")
    report.add("second over first", seconds[1] / seconds[0], "ratio", below=0.4)
    report.add("steps that ran again, but for the deployment", len(again) - 1, "steps", below=1)
