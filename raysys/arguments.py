"""Arguments of public functions: one sentence for a wrong kind or a misspelt name.

A decorator reads the annotations as text, so that it imports nothing, and checks the kinds that
people confuse; all other annotations accept everything.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, TypeVar

from raysys.errors import ArgumentError, unknown_names

__all__ = ["checked"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_BUILTIN: dict[str, Any] = {
    "None": type(None), "str": str, "bytes": bytes, "Path": PurePath, "int": Integral,
    "float": Real, "Mapping": Mapping, "dict": Mapping,
}  # fmt: skip
_LISTS = ("Sequence", "Iterable", "list")
_CLASSES = {
    "BoostSettings", "Graph", "ModelStore", "Schema", "Splits", "Storage", "StoredModel", "Table",
    "TrainSettings", "TrainingTask", "VectorIndex", "BaseModel", "Batching", "HTTPOptions",
    "GatewayOptions", "SearchLimits", "TrialResources", "TrialScheduler", "LeakLimits",
}  # fmt: skip
_SETTINGS = ("Settings", "Options", "Limits", "Resources", "Scheduler", "Batching")
_ALIASES = {"Space": "Mapping[str, Any]"}
_FRAMES = {
    "pandas": "Table.from_pandas({})", "polars": "Table.from_polars({})",
    "pyarrow": "Table.from_arrow({})", "modin": "Table.from_modin({})",
}  # fmt: skip


def checked(function: _Function) -> _Function:
    """A function, or a class with its initializer, that refuses arguments of a wrong kind.

    Raises:
        ArgumentError: At a call; the message names the argument, what it is, and what to give.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    signature = inspect.signature(function)
    kinds = {name: _parsed(part.annotation) for name, part in signature.parameters.items()}
    title = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            unknown = [name for name in kwargs if name not in kinds]
            text = f"{error}; arguments: {signature}" if not unknown else (
                f"unknown arguments {unknown_names(unknown, kinds)}; arguments: "
                f"{', '.join(name for name in kinds if name != 'self')}"
            )  # fmt: skip
            raise ArgumentError(f"{title}: {text}") from None
        for name, value in arguments.items():
            kind = kinds[name]
            if kind is not None and not _accepts(kind, value):
                raise ArgumentError(f"{title}: {_refusal(name, kind, value)}")
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _parsed(annotation: Any) -> ast.expr | None:
    """Syntax of an annotation; None if it accepts everything."""
    if annotation is inspect.Parameter.empty:
        return None
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return ast.parse(_ALIASES.get(text, text), mode="eval").body


def _accepts(kind: ast.expr, value: Any) -> bool:
    """Whether an annotation accepts a value, as far as one can tell."""
    if isinstance(kind, ast.BinOp):
        return _accepts(kind.left, value) or _accepts(kind.right, value)
    name, inner = _name(kind), _inner(kind)
    if name in ("Mapping", "dict"):
        is_mapping = isinstance(value, Mapping)
        return is_mapping and (not inner or all(_accepts(inner[-1], v) for v in value.values()))
    if name in _LISTS:
        if isinstance(value, str | bytes | Mapping) or not hasattr(type(value), "__iter__"):
            return False
        is_list = isinstance(value, list | tuple) and bool(inner)
        return not is_list or all(_accepts(inner[0], item) for item in value)
    if name in _BUILTIN:
        return isinstance(value, _BUILTIN[name])
    if name == "Callable":
        return callable(value)
    if name in _CLASSES or name == "pa.Table":
        package = "pyarrow" if name == "pa.Table" else "raysys" if name != "BaseModel" else ""
        plain = name.removeprefix("pa.")
        return any(
            cls.__name__ == plain and cls.__module__.startswith(package)
            for cls in type(value).__mro__
        )
    return True


def _name(kind: ast.expr) -> str:
    if isinstance(kind, ast.Subscript):
        return _name(kind.value)
    if isinstance(kind, ast.Attribute):
        is_library = isinstance(kind.value, ast.Name) and kind.value.id in ("np", "pa", "pd", "pl")
        return ast.unparse(kind) if is_library else kind.attr
    return "None" if isinstance(kind, ast.Constant) else getattr(kind, "id", "")


def _inner(kind: ast.expr) -> list[ast.expr]:
    """Parameters of `Mapping[str, Table]` and the like."""
    if not isinstance(kind, ast.Subscript):
        return []
    return kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]


def _parts(kind: ast.expr) -> list[ast.expr]:
    is_union = isinstance(kind, ast.BinOp)
    return [*_parts(kind.left), *_parts(kind.right)] if is_union else [kind]  # type: ignore[attr-defined]


def _refusal(name: str, kind: ast.expr, value: Any) -> str:
    """Fact, value and remedy."""
    parts = [part for part in _parts(kind) if _name(part) != "None"]
    for part in parts:  # the item at fault of a list or a mapping of the right kind
        inner = _inner(part)[-1:]
        items: Iterable[tuple[Any, Any]] = ()
        if _name(part) in ("Mapping", "dict") and isinstance(value, Mapping):
            items = value.items()
        elif _name(part) in _LISTS and isinstance(value, list | tuple):
            items = enumerate(value)
        for key, item in items:
            if inner and not _accepts(inner[0], item):
                return _refusal(f"{name}[{key!r}]", inner[0], item)
    words = " or ".join(dict.fromkeys(_word(part) for part in parts))
    return f"{name} is {_given(value)}, not {words}{_remedy(name, parts, value)}"


def _word(kind: ast.expr) -> str:
    name = _name(kind)
    words = {"str": "text", "int": "a whole number", "float": "a number", "Path": "a path",
             "bool": "True or False", "Callable": "a function", "pa.Table": "a pyarrow Table",
             "Mapping": "a dict", "Iterable": "a list", "Sequence": "a list"}  # fmt: skip
    if name in words:
        return words[name]
    return name if name.endswith(("Settings", "Options", "Limits")) else f"a {name}"


def _given(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    for kind, word in ((str, "the text"), (PurePath, "the path"), (Real, "the number")):
        if isinstance(value, kind):
            text = str(value) if isinstance(value, PurePath) else value
            return f"{word} {text!r:.80}"
    cls = value if isinstance(value, type) else type(value)
    package = cls.__module__.partition(".")[0]
    title = f"{package} {cls.__name__}" if package in {*_FRAMES, "numpy"} else cls.__name__
    article = "the class" if cls is value else "an" if title[0].lower() in "aeiou" else "a"
    return f"{article} {title}"


def _remedy(name: str, kinds: list[ast.expr], value: Any) -> str:
    names = [_name(kind) for kind in kinds]
    package = type(value).__module__.partition(".")[0]
    given = name if name.isidentifier() else "it"
    text = ""
    if type(value).__name__ in ("Step", "StepItem") and package == "raysys":
        text = "a step's result exists once it runs: give it as an argument of another step"
    elif "Table" in names and package in _FRAMES:
        text = f"give {_FRAMES[package].format(given)}"
    elif "Table" in names and isinstance(value, str | PurePath):
        text = f"give read({given})"
    elif "pa.Table" in names and package == "raysys":
        text = f"give {given}.to_arrow()"
    elif "Storage" in names and isinstance(value, str | PurePath):
        text = f"give Storage({given})"
    elif "Schema" in names and isinstance(value, str | PurePath):
        text = f"give Schema.from_yaml(Path({given}).read_text())"
    elif (cls := names[0]).endswith(_SETTINGS) and isinstance(value, Mapping):
        text = f"give {cls}(**{given})"
    elif names == ["str"] and isinstance(value, PurePath):
        text = f"give {given}.read_text()" if given == "text" else f"give str({given})"
    elif set(names) & set(_LISTS) and isinstance(value, str):
        text = f"give [{value!r}]"
    elif "Mapping" in names and type(value).__name__ == "Table" and package == "raysys":
        text = f'give {{"train": {given}}}'
    elif names[0] in ("Mapping", "dict") and isinstance(value, list | tuple):
        text = "give names and values, {name: value}"
    elif isinstance(value, type):
        text = f"give an instance, {value.__name__}(...)"
    return f": {text}" if text else ""
