"""Graph nodes: objects built per process, renamed inputs, and placement."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.arguments import checked
from raysys.errors import GraphError
from raysys.identity import digest

if TYPE_CHECKING:
    from raysys.serve._autoscaling import Autoscaling


@checked
@dataclass(frozen=True)
class Placement:
    """A deployment of its own for a node.

    Nodes of equal placement share a deployment, unless they are isolated.

    Attributes:
        replicas: Number of processes that run the node; an `Autoscaling` follows the load.
        cpus: Logical CPUs of each replica.
        gpus: GPUs of each replica.
        isolated: Run alone, so that a crash affects no other node.
    """

    replicas: int | Autoscaling = 1
    cpus: float = 1.0
    gpus: float = 0.0
    isolated: bool = False


class LazyObject:
    """An object that each process constructs when it first runs one of its nodes.

    A graph is pickled as a description: models are loaded where they compute. A LazyObject is a
    node if its class has `__call__`; its methods are nodes too, and share the object.

    Example:
        >>> from raysys.serve import Array, Graph, LazyObject
        >>> class Shift:
        ...     def __init__(self, by: int):
        ...         self.by = by
        ...
        ...     def up(self, x):
        ...         return x + self.by
        >>> shift = LazyObject(Shift, 3)
        >>> Graph(inputs={"x": Array("int64")}, nodes={"y": shift.up}, output="y")({"x": [1]})
        array([4])
    """

    def __init__(self, cls: type, /, *args: Any, **kwargs: Any) -> None:
        """Describe the object by its class and the arguments of the class.

        The arguments are pickled to every replica, so pass paths, not weights.
        """
        self._cls, self._args, self._kwargs = cls, args, kwargs
        self._instance: Any = None
        self._inputs: tuple[str, ...] | None = None  # names of parameters, if not the class's

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or not callable(getattr(self._cls, name, None)):
            raise AttributeError(f"{self._cls.__name__} has no method {name!r}")
        return LazyMethod(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_instance": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._cls.__name__})"

    def _get(self) -> Any:
        """The object of this process."""
        if self._instance is None:
            self._instance = self._construct()
        return self._instance

    def _construct(self) -> Any:
        return self._cls(*self._args, **self._kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get()(*args, **kwargs)


@dataclass(frozen=True)
class LazyMethod:
    """A method of a LazyObject as a node."""

    owner: LazyObject
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.owner._get(), self.name)(*args, **kwargs)


def lazy_object_of(call: Callable[..., Any]) -> LazyObject | None:
    """The LazyObject behind a node, if it has one."""
    while isinstance(call, functools.partial):
        call = call.func
    owner = call.owner if isinstance(call, LazyMethod) else call
    return owner if isinstance(owner, LazyObject) else None


def load(call: Callable[..., Any]) -> None:
    """Construct the LazyObject of a node, if it has one."""
    if owner := lazy_object_of(call):
        owner._get()


class _Input(inspect.Parameter):
    """A parameter named as a model's input: also "mean radius", which no function could have."""

    def __init__(self, name: str) -> None:
        super().__init__("input", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._name = name


def function_of(call: Callable[..., Any]) -> tuple[Any, list[inspect.Parameter]]:
    """The function behind a node and its parameters, without `self` and what a partial binds.

    Raises:
        GraphError: Not a callable with named parameters.
    """
    if isinstance(call, functools.partial):
        function, parameters = function_of(call.func)
        return function, _unbound(call, parameters)
    if isinstance(call, LazyObject) and call._inputs is not None:
        return call._cls.__call__, [_Input(name) for name in call._inputs]
    function = call
    if isinstance(call, LazyMethod):
        function = getattr(call.owner._cls, call.name)
    elif isinstance(call, LazyObject):
        function = call._cls.__call__
        if not inspect.isfunction(function):
            raise GraphError(f"{call._cls.__name__} has no __call__; give one of its methods")
    elif not callable(call):
        kind = type(call).__name__
        raise GraphError(f"type {kind} is not callable: give a function or a LazyObject")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError as error:  # of some built-in functions
        raise GraphError(f"{call!r} has no signature: wrap it in a function") from error
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise GraphError(f"{call!r} has variadic parameters: wrap it in a function without them")
    static = isinstance(call, LazyMethod) and isinstance(
        inspect.getattr_static(call.owner._cls, call.name), (staticmethod, classmethod)
    )
    has_self = isinstance(call, (LazyObject, LazyMethod)) and not static
    return function, parameters[1:] if has_self else parameters


def _unbound(
    call: functools.partial[Any], parameters: list[inspect.Parameter]
) -> list[inspect.Parameter]:
    """Parameters that a partial leaves; those after one that it binds by name are keywords."""
    names = [p.name for p in parameters]
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if (unknown := sorted(call.keywords.keys() - set(names))) or len(call.args) > len(positional):
        extra = unknown or f"{len(call.args)} positional arguments"
        raise GraphError(f"a partial binds {extra}; the parameters of {call.func!r} are {names}")
    left, is_bound = [], False
    for parameter in parameters[len(call.args) :]:
        if parameter.name in call.keywords:
            is_bound = True
        else:
            left.append(parameter.replace(kind=parameter.KEYWORD_ONLY) if is_bound else parameter)
    return left


def connect(
    parameters: list[inspect.Parameter], sources: Mapping[str, str], available: Set[str]
) -> tuple[list[str], list[str]]:
    """Parameters of a node that are connected: those to pass by position, and by keyword.

    A parameter with a default is connected if its source, by the parameter's name, is available
    or another one was bound to it.

    Raises:
        GraphError: A parameter cannot be passed.
    """
    positional: list[str] = []
    keywords: list[str] = []
    has_gap = False
    for parameter in parameters:
        source = sources[parameter.name]
        is_optional = parameter.default is not parameter.empty and source == parameter.name
        if is_optional and source not in available:
            has_gap = True
        elif not has_gap and parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise GraphError(f"{parameter.name!r} follows a default: wrap it in a function")
        else:
            keywords.append(parameter.name)
    return positional, keywords


def content_of(call: Callable[..., Any]) -> str:
    """Digest of a node: the code it reaches, its state, and the arguments of its LazyObject."""
    if isinstance(call, functools.partial):
        return digest(content_of(call.func), call.args, call.keywords, strict=False)
    owner = call.owner if isinstance(call, LazyMethod) else call
    if not isinstance(owner, LazyObject):
        return digest(call, strict=False)
    method = call.name if isinstance(call, LazyMethod) else "__call__"
    return digest(owner._cls, method, owner._args, owner._kwargs, strict=False)


@dataclass(frozen=True)
class BoundNode:
    """A node with renamed inputs; see `bind_inputs`."""

    call: Callable[..., Any]
    names: Mapping[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


def bind_inputs(node: Callable[..., Any], /, **names: str) -> Callable[..., Any]:
    """A node whose parameters are bound to inputs or nodes of other names.

    Example:
        >>> from raysys.serve import Array, Graph, bind_inputs
        >>> triple = bind_inputs(lambda x: 3 * x, x="weight")
        >>> graph = Graph(inputs={"weight": Array("int64")}, nodes={"y": triple}, output="y")
        >>> graph({"weight": [2]})
        array([6])
    """
    return BoundNode(node, names)
