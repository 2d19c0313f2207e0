"""A step of a job: a function, what it is called with, and how it is run."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from raysys.cluster import Resources


@dataclass(frozen=True)
class Options:
    """How a step is run.

    Attributes:
        needs: All that the step and whatever it starts hold at one time. Steps that say it run
            beside each other as far as the cluster has room; one that does not runs alone.
        cpus: Logical CPUs of the step's own task; 0 runs it on the driver's node, for steps that
            only start work elsewhere.
        gpus: GPUs of the step's own task.
        retries: How often a step is tried again after a lost process, node, object or service.
            An error that its code raises is not tried again.
        timeout_s: Time for one try, in seconds; the step's process then ends, and with it all
            that it started. Counts as lost.
        cached: The result of an earlier run is taken if code, parameters and inputs are equal.
    """

    needs: Resources | None = None
    cpus: float = 0.0
    gpus: float = 0.0
    retries: int = 2
    timeout_s: float | None = None
    cached: bool = True


@dataclass(eq=False)
class Step:
    """A step as a job knows it; as an argument of another step it stands for its result.

    `step["key"]` stands for one item of the result, if that is a mapping or a sequence.

    Attributes:
        name: In the dashboard, in the record and for `--from`.
        function: Called as `function(run, *args, **kwargs)` with a `Run`, in a Ray task.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    how: Options = field(default_factory=Options)

    def options(self, **how: Any) -> Step:
        """Say how it is run, see `Options`; the step itself."""
        if unknown := set(how) - {one.name for one in dataclasses.fields(Options)}:
            raise RaysysError(
                f"step {self.name!r}: no option {sorted(unknown)[0]!r}; there are "
                f"{', '.join(one.name for one in dataclasses.fields(Options))}"
            )
        self.how = dataclasses.replace(self.how, **how)
        return self

    def __getitem__(self, key: Any) -> Item:
        return Item(self, key)

    def __iter__(self) -> Iterator[Any]:
        raise RaysysError(
            f"the result of step {self.name!r} is not there while the job is put together: "
            f"take its items by name, step[...]"
        )

    @property
    def inputs(self) -> list[Step]:
        """The steps whose results it is called with, each once."""
        return list(dict.fromkeys(_steps((self.args, self.kwargs))))


@dataclass(frozen=True, eq=False)
class Item:
    """One item of a step's result."""

    step: Step
    key: Any


def filled(value: Any, results: Mapping[str, Any]) -> Any:
    """Arguments with each step, in lists and dicts too, replaced by what stands under its name."""
    if isinstance(value, Step):
        return results[value.name]
    if isinstance(value, Item):
        return results[value.step.name][value.key]
    if isinstance(value, dict):
        return {key: filled(one, results) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(filled(one, results) for one in value)
    return value


def named(function: Callable[..., Any]) -> str:
    """A step's name of its function's: `tune_ranker` is "tune ranker"."""
    while hasattr(function, "func"):
        function = function.func
    return function.__name__.strip("_").replace("_", " ")


def check_name(name: str) -> None:
    """Refuse a name that cannot be part of a path or of a command."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]*", name):
        raise RaysysError(f"step {name!r}: name it with letters, digits, spaces, _, . and -")


def _steps(value: Any) -> Iterator[Step]:
    if isinstance(value, Step):
        yield value
    elif isinstance(value, Item):
        yield value.step
    elif isinstance(value, dict):
        yield from _steps(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _steps(one)
