"""A step of a job: a function, its arguments, and the options of its task."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from raysys.cluster import Resources

_CONTAINERS = (dict, list, tuple, set, frozenset)


@dataclass(frozen=True)
class StepOptions:
    """Resources, retries and caching of a step.

    Attributes:
        resources: Peak resources of the step and everything it starts. Steps that declare them
            run in parallel while they fit; a step without resources runs alone.
        num_cpus: Logical CPUs of the step's own task; 0 runs it on the driver's node, for steps
            that only start work elsewhere.
        num_gpus: GPUs of the step's own task.
        max_retries: Retries after a lost process, node, object or service. An error raised by the
            step's code is final.
        timeout_s: Time limit of an attempt in seconds; then the step's process ends with
            everything it started, which counts as a loss.
        cached: Reuse the result of an earlier run if code, parameters and inputs are equal.
    """

    resources: Resources | None = None
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    max_retries: int = 2
    timeout_s: float | None = None
    cached: bool = True


@dataclass(eq=False)
class Step:
    """A step of a job; as an argument of another step it stands for its result.

    `step["key"]` stands for an item of the result, if that is a mapping or a sequence.

    Attributes:
        name: Name in the dashboard, in the record and for `--from`.
        function: Called as `function(run, *args, **kwargs)` with a `Run`, in a Ray task.
        settings: Options of its task.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    settings: StepOptions = field(default_factory=StepOptions)

    def __repr__(self) -> str:
        inputs = ", ".join(repr(step.name) for step in self.inputs)
        return f"Step({self.name!r}, inputs=[{inputs}])"

    def options(self, **options: Any) -> Step:
        """Set options, see `StepOptions`; returns the step."""
        names = [option.name for option in dataclasses.fields(StepOptions)]
        if unknown := sorted(set(options) - set(names)):
            raise RaysysError(
                f"step {self.name!r}: unknown option {unknown[0]!r}; there are {', '.join(names)}"
            )
        self.settings = dataclasses.replace(self.settings, **options)
        return self

    def __getitem__(self, key: Any) -> StepItem:
        return StepItem(self, key)

    def __iter__(self) -> Iterator[Any]:
        raise RaysysError(
            f"the result of step {self.name!r} does not exist while the job is built: use its "
            "items by name, step[...]"
        )

    @property
    def inputs(self) -> list[Step]:
        """Steps among the arguments, without repetition."""
        return list(dict.fromkeys(_steps((self.args, self.kwargs))))


@dataclass(frozen=True, eq=False)
class StepItem:
    """An item of a step's result."""

    step: Step
    key: Any


def with_results(value: Any, results: Mapping[str, Any]) -> Any:
    """Arguments with steps, also those in containers, replaced by results by step name."""
    if isinstance(value, Step):
        return results[value.name]
    if isinstance(value, StepItem):
        return results[value.step.name][value.key]
    if not isinstance(value, _CONTAINERS) or next(_steps(value), None) is None:
        return value
    if isinstance(value, dict):
        replaced = copy.copy(value)
        replaced.update((key, with_results(item, results)) for key, item in value.items())
        return replaced
    items = [with_results(item, results) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def step_name(function: Callable[..., Any]) -> str:
    """Name of a function's step: `tune_ranker` is "tune ranker"; of an object, by its class."""
    while isinstance(function, functools.partial) and not hasattr(function, "__name__"):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return name.strip("_").replace("_", " ")


def check_name(name: str) -> None:
    """Reject a name that cannot be part of a path or of a command."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]*", name):
        raise RaysysError(f"step {name!r}: use letters, digits, spaces, _, . and -")


def _steps(value: Any) -> Iterator[Step]:
    """Steps that are a value, or within containers."""
    if isinstance(value, Step):
        yield value
    elif isinstance(value, StepItem):
        yield value.step
    elif isinstance(value, _CONTAINERS):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _steps(item)


def check_no_hidden_step(value: Any, depth: int = 4) -> None:
    """Refuse a step where it would not be replaced: in an object's attribute or a dict's key."""
    if isinstance(value, _CONTAINERS):
        for item in value.values() if isinstance(value, dict) else value:
            check_no_hidden_step(item, depth)
    if depth == 0 or isinstance(value, (Step, StepItem, type, ModuleType)):
        return
    inner: list[Any] = [list(value)] if isinstance(value, dict) else []
    inner += [getattr(value, "__dict__", None), *_bound(value)]
    for part in filter(None, inner):
        if step := next(_steps(part), None):
            raise RaysysError(
                f"step {step.name!r} is hidden in a {type(value).__name__}: give it as an argument "
                "of the step, or in a list, tuple, set or the values of a dict"
            )
        items = part.values() if isinstance(part, dict) else part
        for item in items:
            if not isinstance(item, _CONTAINERS):
                check_no_hidden_step(item, depth - 1)


def _bound(value: Any) -> list[Any]:
    """Values that a callable is bound to."""
    if isinstance(value, functools.partial):
        return [value.args, value.keywords]
    values = []
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a name that has no value yet
            values.append(cell.cell_contents)
    return [values]
