"""A job's steps and their states, as text and as Mermaid."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "skipped": "=", "failed": "✗"}
_COLOURS = {
    "running": "fill:#fff3c4", "done": "fill:#d3f9d8", "skipped": "fill:#e7f5ff",
    "failed": "fill:#ffc9c9",
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A step as it is drawn.

    Attributes:
        name: Of the step.
        inputs: Names of the steps whose results it takes.
        state: See `Progress`.
        seconds: What it took, if that is known.
    """

    name: str
    inputs: Sequence[str]
    state: str
    seconds: float | None = None


def draw_record(record: Mapping[str, Any], kind: str = "text") -> str:
    """The steps of a run's record, `run.json`; `kind` is "text" or "mermaid"."""
    steps = [
        Drawn(step["name"], step["inputs"], step["state"], step.get("seconds"))
        for step in record["steps"]
    ]
    return as_mermaid(steps) if kind == "mermaid" else as_text(steps)


def as_text(steps: Sequence[Drawn]) -> str:
    """One line a step: mark, name, state, seconds, inputs."""
    width = max((len(step.name) for step in steps), default=0)
    lines = []
    for step in steps:
        took = "" if step.seconds is None else f"{step.seconds:.1f} s"
        taken = f"  <- {', '.join(step.inputs)}" if step.inputs else ""
        line = f"{_MARKS[step.state]} {step.name:<{width}}  {step.state:<7} {took:>9}{taken}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def as_mermaid(steps: Sequence[Drawn]) -> str:
    """A flow chart for a Markdown page."""
    ids = {step.name: f"s{number}" for number, step in enumerate(steps)}
    lines = ["flowchart TD"]
    for step in steps:
        took = "" if step.seconds is None else f", {step.seconds:.1f} s"
        text = re.sub(r"[\"<>]", "", f"{step.name}")
        lines.append(f'    {ids[step.name]}["{text}<br/>{step.state}{took}"]')
    lines += [f"    {ids[one]} --> {ids[step.name]}" for step in steps for one in step.inputs]
    for state, style in _COLOURS.items():
        if found := [ids[step.name] for step in steps if step.state == state]:
            lines += [f"    classDef {state} {style}", f"    class {','.join(found)} {state}"]
    return "\n".join(lines)
