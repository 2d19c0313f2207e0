"""Nodes that describe what each process makes for itself, and where it runs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import GraphError
from raysys.identity import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raysys.serve._autoscaling import Scale


@dataclass(frozen=True)
class Placement:
    """Where a node runs, if not beside the others.

    Nodes of equal placement share a deployment of their own, unless they are isolated.

    Attributes:
        replicas: Processes that hold the node; a `Scale` lets them follow the load.
        cpus: Logical CPUs of each.
        gpus: GPUs of each.
        isolated: Alone, so that what kills it takes nothing else along.
    """

    replicas: int | Scale = 1
    cpus: float = 1.0
    gpus: float = 0.0
    isolated: bool = False


class Lazy:
    """An object that each process makes for itself when it first runs one of its nodes.

    So a graph travels as a description: models are loaded where they compute. A Lazy is a node
    if its class has `__call__`; its methods are nodes too, and share the object.

    Example:
        >>> class Shift:
        ...     def __init__(self, by: int):
        ...         self.by = by
        ...
        ...     def up(self, x):
        ...         return x + self.by
        >>> shift = Lazy(Shift, 3)
        >>> Graph(inputs={"x": Array("int64")}, nodes={"y": shift.up}, output="y")({"x": [1]})
        array([4])
    """

    def __init__(self, make: type, *args: Any, **kwargs: Any) -> None:
        """Describe the object.

        Args:
            make: Its class.
            args: Of the class; they are pickled to every replica, so give paths, not weights.
            kwargs: Likewise.
        """
        self._make, self._args, self._kwargs = make, args, kwargs
        self._made: Any = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or not callable(getattr(self._make, name, None)):
            raise AttributeError(f"{self._make.__name__} has no method {name!r}")
        return Method(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _get(self) -> Any:
        """The object of this process."""
        if self._made is None:
            self._made = self._make(*self._args, **self._kwargs)
        return self._made

    def __call__(self, *args: Any) -> Any:
        return self._get()(*args)


class Method:
    """A method of a Lazy as a node."""

    def __init__(self, owner: Lazy, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any) -> Any:
        return getattr(self.owner._get(), self.name)(*args)


def load(call: Callable[..., Any]) -> None:
    """Make the object that a node needs, if it is a Lazy's and not yet there."""
    lazy = call.owner if isinstance(call, Method) else call
    if isinstance(lazy, Lazy):
        lazy._get()


def function_of(call: Callable[..., Any]) -> tuple[Any, list[str]]:
    """The function behind a node and its parameters, `self` left out.

    Raises:
        GraphError: It is nothing that can be called.
    """
    function: Any = call
    if isinstance(call, Method):
        function = getattr(call.owner._make, call.name)
    elif isinstance(call, Lazy):
        function = call._make.__call__
        if not inspect.isfunction(function):
            raise GraphError(f"{call._make.__name__} has no __call__; give one of its methods")
    elif not callable(call):
        raise GraphError(f"type {type(call).__name__} cannot be called: give a function or a Lazy")
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:  # of some built-in functions
        raise GraphError(f"{call!r} does not say what it takes: wrap it in a function") from error
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    free = [parameter for parameter in parameters.values() if parameter.kind in plain]
    if len(free) < len(parameters):
        raise GraphError(f"{call!r} takes more than plain parameters: wrap it in a function")
    static = isinstance(call, Method) and isinstance(
        inspect.getattr_static(call.owner._make, call.name), (staticmethod, classmethod)
    )
    names = [parameter.name for parameter in free]
    return function, names[1:] if isinstance(call, (Lazy, Method)) and not static else names


def content_of(call: Callable[..., Any]) -> str:
    """Digest of a node: the code it reaches, and the arguments of its Lazy object."""
    lazy = call.owner if isinstance(call, Method) else call
    if not isinstance(lazy, Lazy):
        return digest(call, strict=False)
    method = call.name if isinstance(call, Method) else "__call__"
    return digest(lazy._make, method, lazy._args, lazy._kwargs, strict=False)


class Renamed:
    """A node whose parameters are fed by others than their names say; see `using`."""

    def __init__(self, call: Callable[..., Any], names: Mapping[str, str]) -> None:
        self.call, self.names = call, dict(names)

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def using(node: Callable[..., Any], **names: str) -> Callable[..., Any]:
    """A node whose parameters are fed by the inputs or nodes of these names.

    Example:
        >>> triple = using(lambda x: 3 * x, x="weight")
        >>> Graph(inputs={"weight": Array("int64")}, nodes={"y": triple}, output="y")(
        ...     {"weight": np.array([2])}
        ... )
        array([6])
    """
    return Renamed(node, names)
