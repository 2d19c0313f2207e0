"""Figures with their bars, printed and written as JSON."""

import argparse
import atexit
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks._busy import STATES, keep_busy

_busy: list[str] = []  # of this process, as asked by its flag


@dataclass(frozen=True)
class Figure:
    """A measured value and what it is held against."""

    name: str
    value: float
    unit: str
    bar: str
    holds: bool | None


@dataclass
class Report:
    """Collects figures; says each at once.

    Its date, commit and machine are those at the start: the checkout may change meanwhile.
    """

    figures: list[Figure] = field(default_factory=list)
    circumstances: dict[str, Any] = field(default_factory=lambda: _circumstances())

    def add(
        self, name: str, value: float, unit: str, *, below: float | None = None,
        above: float | None = None,
    ) -> None:  # fmt: skip
        """Add a value, with its bar if it has one."""
        value, bar, holds = float(value), "none", None
        if below is not None:
            bar, holds = f"< {below:g}", value < below
        if above is not None:
            bar, holds = f"> {above:g}", value > above
        self.figures.append(Figure(name, value, unit, bar, holds))
        verdict = {True: "holds", False: "FAILS", None: ""}[holds]
        print(f"{name:<58} {value:>10.4g} {unit:<10} {bar:<10} {verdict}", flush=True)

    def write(self, path: Path | None) -> None:
        """Write the figures as JSON; a bar that does not hold ends the program with status 1."""
        if path:
            result = {**self.circumstances, "figures": [asdict(f) for f in self.figures]}
            path.write_text(json.dumps(result, indent=2) + "\n")
        if any(figure.holds is False for figure in self.figures):
            raise SystemExit(1)


def _circumstances() -> dict[str, Any]:
    """Date, commit and machine of a measurement."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip() or None,
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}",
        **({"busy": _busy[0]} if _busy else {}),
    }


def arguments(description: str, *, full: str | None = None) -> argparse.Namespace:
    """The flags that every benchmark has; `full` says what `--full` does where there is more.

    The benchmark and its processes get a folder of Ray of their own, so that they neither join nor
    stop a head of this machine's user.
    """
    folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    os.environ["RAY_TMPDIR"] = folder.name
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller inputs")
    if full:
        parser.add_argument("--full", action="store_true", help=full)
    parser.add_argument("--busy", choices=STATES, help="other work on all cores meanwhile")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    options = parser.parse_args()
    if options.busy:
        keep_busy(options.busy)
        _busy.append(options.busy)
    return options


def run(description: str, *parts: Callable[[Report, bool], None]) -> None:
    """Measure the parts of a benchmark, one after the other, as the flags say."""
    asked = arguments(description)
    report = Report()
    for measure in parts:
        measure(report, asked.quick)
    report.write(asked.json)
