"""Diagrams of a job's steps and their states, as text and as Mermaid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "skipped": "=", "failed": "✗"}
_COLOURS = {
    "running": "fill:#fff3c4", "done": "fill:#d3f9d8", "skipped": "fill:#e7f5ff",
    "failed": "fill:#ffc9c9",
}  # fmt: skip


@dataclass(frozen=True)
class _DiagramStep:
    """A step in a diagram.

    Attributes:
        name: Name of the step.
        inputs: Names of the steps whose results it takes.
        state: State, see `StepProgress`.
        seconds: Duration, if it is known.
    """

    name: str
    inputs: Sequence[str]
    state: str
    seconds: float | None = None


def draw_record(record: Mapping[str, Any], kind: str = "text") -> str:
    """The steps of a run's record, `run.json`; `kind` is "text" or "mermaid"."""
    steps = [
        _DiagramStep(step["name"], step["inputs"], step["state"], step.get("seconds"))
        for step in record["steps"]
    ]
    return _mermaid(steps) if kind == "mermaid" else _text(steps)


def _text(steps: Sequence[_DiagramStep]) -> str:
    """A line per step: mark, name, state, seconds, inputs."""
    width = max((len(step.name) for step in steps), default=0)
    lines = []
    for step in steps:
        duration = "" if step.seconds is None else f"{step.seconds:.1f} s"
        inputs = f"  <- {', '.join(step.inputs)}" if step.inputs else ""
        line = f"{_MARKS[step.state]} {step.name:<{width}}  {step.state:<7} {duration:>9}{inputs}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _mermaid(steps: Sequence[_DiagramStep]) -> str:
    """A flow chart for a Markdown page."""
    ids = {step.name: f"s{number}" for number, step in enumerate(steps)}
    lines = ["flowchart TD"]
    for step in steps:
        duration = "" if step.seconds is None else f", {step.seconds:.1f} s"
        text = re.sub(r"[\"<>]", "", f"{step.name}")
        lines.append(f'    {ids[step.name]}["{text}<br/>{step.state}{duration}"]')
    lines += [f"    {ids[name]} --> {ids[step.name]}" for step in steps for name in step.inputs]
    for state, style in _COLOURS.items():
        if members := [ids[step.name] for step in steps if step.state == state]:
            lines += [f"    classDef {state} {style}", f"    class {','.join(members)} {state}"]
    return "\n".join(lines)
