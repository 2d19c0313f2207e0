"""Arguments of public functions: one sentence for a wrong kind or a misspelt name.

A decorator reads the annotations as text, so that it imports nothing, and checks the kinds that
people confuse; all other annotations accept everything.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import PurePath
from typing import Any, TypeVar

from raysys.errors import ArgumentError, unknown_names

__all__ = ["checked"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LISTS = ("Sequence", "Iterable", "list")
_MAPPINGS = ("Mapping", "dict")
# Classes by the last part of their names: package and name.
_CLASSES = {
    "pa.Table": "pyarrow.Table", "pd.DataFrame": "pandas.DataFrame",
    "pl.DataFrame": "polars.DataFrame", "pl.Expr": "polars.Expr",
    **{name: f"raysys.{name}" for name in (
        "Batching", "BoostSettings", "GatewayOptions", "Graph", "HTTPOptions", "LeakLimits",
        "ModelStore", "Schema", "SearchLimits", "Splits", "Storage", "StoredModel", "Table",
        "TrainSettings", "TrainingTask", "TrialResources", "TrialScheduler", "VectorIndex",
    )},
}  # fmt: skip
_SETTINGS = ("Settings", "Options", "Limits", "Resources", "Scheduler", "Batching")
_ALIASES = {"Space": "Mapping[str, Any]", "PlannedBlocks": "Table"}
_CONVERSIONS = {
    "pandas": "Table.from_pandas({})", "polars": "Table.from_polars({})",
    "pyarrow": "Table.from_arrow({})", "modin": "Table.from_modin({})",
}  # fmt: skip
# Packages whose objects cannot stand in for an object of another class.
_OTHERS = {
    *_CONVERSIONS, "builtins", "collections", "datetime", "numpy", "pathlib", "ray", "raysys",
}  # fmt: skip
_WORDS = {
    "str": "text", "int": "a whole number", "float": "a number", "Path": "a path",
    "Callable": "a function", "BaseModel": "a pydantic model", "Mapping": "a dict",
    "Iterable": "a list", "Sequence": "a list", "None": "None",
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
    kinds = {name: _parsed(part) for name, part in signature.parameters.items()}
    title = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            unknown = [name for name in kwargs if name not in kinds]
            if not unknown:
                raise ArgumentError(f"{title}: {error}") from None
            names = ", ".join(name for name in kinds if name not in ("self", "cls"))
            raise ArgumentError(
                f"{title}: unknown arguments {unknown_names(unknown, kinds)}; arguments: {names}"
            ) from None
        for name, value in arguments.items():
            kind = kinds[name]
            if kind is not None and not _accepts(kind, value):
                raise ArgumentError(f"{title}: {_refusal(name, kind, value)}")
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _parsed(parameter: inspect.Parameter) -> ast.expr | None:
    """Syntax of an annotation; None if it accepts everything."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return None
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = _ALIASES.get(text, text)
    if parameter.kind is parameter.VAR_KEYWORD:
        text = f"Mapping[str, {text}]"
    elif parameter.kind is parameter.VAR_POSITIONAL:
        text = f"Sequence[{text}]"
    return ast.parse(text, mode="eval").body


def _accepts(kind: ast.expr, value: Any) -> bool:
    """Whether an annotation accepts a value, as far as one can tell."""
    if isinstance(kind, ast.BinOp):
        return _accepts(kind.left, value) or _accepts(kind.right, value)
    name, inner = _name(kind), _inner(kind)
    if name in _MAPPINGS:
        is_mapping = isinstance(value, Mapping)
        return is_mapping and (not inner or all(_accepts(inner[-1], v) for v in value.values()))
    if name in _LISTS:
        if isinstance(value, str | bytes) or not hasattr(type(value), "__iter__"):
            return False
        if isinstance(value, Mapping):  # its names may be what is asked for
            return name == "Iterable"
        is_list = isinstance(value, list | tuple) and bool(inner)
        return not is_list or all(_accepts(inner[0], item) for item in value)
    if name in _CLASSES:
        package, _, plain = _CLASSES[name].partition(".")
        mro = type(value).__mro__
        is_one = any(c.__name__ == plain and c.__module__.startswith(package) for c in mro)
        return is_one or _package(value) not in _OTHERS  # another class may behave like it
    match name:
        case "None":
            return value is None
        case "str":
            return isinstance(value, str)
        case "Path":
            return isinstance(value, PurePath)
        case "int":
            return hasattr(type(value), "__index__")
        case "float":
            return hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
        case "Callable":
            return callable(value)
        case "BaseModel":
            return hasattr(type(value), "model_fields")
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
        if _name(part) in _MAPPINGS and isinstance(value, Mapping):
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
    word = _WORDS.get(name) or _CLASSES.get(name, name).removeprefix("raysys.").replace(".", " ")
    is_plain = name in _WORDS or word.endswith(("Settings", "Options", "Limits"))
    return word if is_plain else f"a {word}"


def _given(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    for kind, word in ((str, "the text"), (PurePath, "the path"), (Real, "the number")):
        if isinstance(value, kind):
            text = str(value) if isinstance(value, PurePath) else value
            return f"{word} {text!r:.80}"
    cls = value if isinstance(value, type) else type(value)
    package = cls.__module__.partition(".")[0]
    title = f"{package} {cls.__name__}" if package in {*_CONVERSIONS, "numpy"} else cls.__name__
    article = "the class" if cls is value else "an" if title[0].lower() in "aeiou" else "a"
    return f"{article} {title}"


def _package(value: Any) -> str:
    return "builtins" if isinstance(value, type) else type(value).__module__.partition(".")[0]


def _remedy(name: str, kinds: list[ast.expr], value: Any) -> str:
    names = [_name(kind) for kind in kinds]
    package = _package(value)
    given = name if name.isidentifier() else "it"
    text = ""
    if type(value).__name__ in ("Step", "StepItem") and package == "raysys":
        text = "a step's result exists once it runs: give it as an argument of another step"
    elif "Table" in names and package in _CONVERSIONS:
        text = f"give {_CONVERSIONS[package].format(given)}"
    elif names[0] in ("pa.Table", "pd.DataFrame", "pl.DataFrame") and package in _CONVERSIONS:
        text = f"give it to {_CONVERSIONS[package].partition('(')[0]}"
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
    elif names[0] in _MAPPINGS and isinstance(value, list | tuple):
        text = "give names and values, {name: value}"
    elif isinstance(value, type):
        text = f"give an instance, {value.__name__}(...)"
    return f": {text}" if text else ""
