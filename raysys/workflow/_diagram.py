"""Diagrams of a job's steps and their states, as text and as Mermaid."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raysys.arguments import checked

_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "skipped": "=", "failed": "✗"}
_COLOURS = {
    "running": "fill:#fff3c4", "done": "fill:#d3f9d8", "skipped": "fill:#e7f5ff",
    "failed": "fill:#ffc9c9",
}  # fmt: skip

_Steps = Sequence[Mapping[str, Any]]  # of a run's record


@checked
def draw_record(record: Mapping[str, Any], kind: str = "text") -> str:
    """The steps of a run's record, `run.json`; `kind` is "text" or "mermaid"."""
    return _mermaid(record["steps"]) if kind == "mermaid" else _text(record["steps"])


def _text(steps: _Steps) -> str:
    """A line per step: mark, name, state, seconds, inputs; then the tracebacks of failed steps."""
    width = max((len(step["name"]) for step in steps), default=0)
    lines = []
    for step in steps:
        duration = f"{step['seconds']:.1f} s" if "seconds" in step else ""
        inputs = f"  <- {', '.join(step['inputs'])}" if step["inputs"] else ""
        name, state = step["name"], step["state"]
        line = f"{_MARKS[state]} {name:<{width}}  {state:<7} {duration:>9}{inputs}"
        lines.append(line.rstrip())
    for step in steps:
        if traceback := step.get("traceback"):
            lines += ["", f"step {step['name']!r}: {step['error']}", traceback]
    return "\n".join(lines)


def _mermaid(steps: _Steps) -> str:
    """A flow chart for a Markdown page."""
    ids = {step["name"]: f"s{number}" for number, step in enumerate(steps)}
    lines = ["flowchart TD"]
    for step in steps:
        duration = f", {step['seconds']:.1f} s" if "seconds" in step else ""
        text = re.sub(r"[\"<>]", "", step["name"])
        lines.append(f'    {ids[step["name"]]}["{text}<br/>{step["state"]}{duration}"]')
    arrows = [(name, step["name"]) for step in steps for name in step["inputs"]]
    lines += [f"    {ids[source]} --> {ids[target]}" for source, target in arrows]
    for state, style in _COLOURS.items():
        if members := [ids[step["name"]] for step in steps if step["state"] == state]:
            lines += [f"    classDef {state} {style}", f"    class {','.join(members)} {state}"]
    return "\n".join(lines)
