"""Digest of the code that a function runs: its own and the project code that it reaches.

The project is the folder from which the function's module was imported. Source is read, not run:
a definition counts with every definition that its text names, across modules, so that an edit
elsewhere in a module changes nothing. Comments, layout and docstrings do not count. Installed
packages count by version, raysys by content. A function without a source file (a notebook, exec)
counts by its bytecode and that of the functions it names. A name that no source defines has no
digest: its code counts as changed in every process. Code reached only through a string (`getattr`,
`importlib`) or an instance passed as an argument is not seen.
"""

import ast
import builtins
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import logging
import secrets
import sys
import types
from pathlib import Path
from typing import Any

from raysys.identity._module_source import (
    ModuleSource,
    bound_names,
    find_spec,
    is_installed,
    module_source,
    without_docs,
)

_log = logging.getLogger("raysys.identity")
_BUILTINS = frozenset(dir(builtins)) | {"__file__", "__path__", "__class__"}
# Module and top-level name; None for all of the module.
_Unit = tuple[str, str | None]


def code_digest(function: Any) -> str:
    """Digest of the code of a function or class, 32 hex digits, equal in every process."""
    function = inspect.unwrap(function)
    qualified = function.__qualname__
    unit = qualified.partition(".")[0]
    name, source = function.__module__, _source(function)
    if source is None or (unit not in source.units and "<" not in unit):
        return _hash(_bytecode(function, set()))
    digest = _unit_digest(name, unit if unit in source.units else None)
    if "<" in qualified and hasattr(function, "__code__"):
        # Several functions of one unit: two lambdas of a module differ only in their bytecode.
        return _hash((digest, _constant(function.__code__, function.__doc__)))
    return digest


def source_digest(value: Any) -> str | None:
    """Digest of the project's source of a class or function and of all that it reaches.

    As `code_digest`, but without versions of packages; None of code that is installed or has no
    source, and of raysys' own.
    """
    value = inspect.unwrap(value)
    package = (getattr(value, "__module__", None) or "raysys").partition(".")[0]
    source = None if package == "raysys" else _source(value)
    if source is None:
        return None
    unit = value.__qualname__.partition(".")[0]
    _, texts, _ = _Reach(source.root).content(
        value.__module__, unit if unit in source.units else None
    )
    # A name that no source defines has another text in every process, and a dot in its key.
    return _hash([text for text in texts if "." not in text[1]])


def forget_sources() -> None:
    """Read source files again at the next digest, for tests that edit them."""
    for function in (module_source, is_installed, _unit_digest):
        function.cache_clear()


@functools.cache
def _unit_digest(name: str, unit: str | None) -> str:
    source = module_source(name)
    assert source is not None
    return _hash(_Reach(source.root).content(name, unit))


def _source(function: Any) -> ModuleSource | None:
    """Source of the module of a function; None if the function is not from that file."""
    name = function.__module__
    source = module_source(name)
    code = getattr(function, "__code__", None)
    if source is None or code is None:
        return source
    # The folder may be another one: unpickled functions keep the path of their first process.
    depth = 1 if name == "__main__" else len(source.path.relative_to(source.root).parts)
    is_same = Path(code.co_filename).parts[-depth:] == source.path.parts[-depth:]
    return source if is_same else None


def _hash(content: Any) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


class _Reach:
    """Definitions that are reached from a definition."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._texts: dict[tuple[str, str], str] = {}
        self._packages: set[str] = set()

    def content(self, name: str, unit: str | None) -> Any:
        """Texts of a definition, or a whole module, and all that it reaches; package versions."""
        waiting, seen = [(name, unit)], set()
        while waiting:
            reached = waiting.pop()
            if reached not in seen:
                seen.add(reached)
                waiting += self._add(*reached)
        texts = sorted((*key, text) for key, text in self._texts.items())
        versions = sorted((package, _version(package)) for package in self._packages)
        return sys.version_info[:2], texts, versions

    def _add(self, name: str, unit: str | None) -> list[_Unit]:
        module = self._project_module(name)
        if module is None:
            self._packages.add(name.partition(".")[0])
            return []
        if unit is None:
            units: list[_Unit] = [(name, defined) for defined in module.units]
            return units + self._named(name, module, "", module.always)
        if unit in module.units:
            reached = self._named(name, module, unit, module.units[unit])
            return reached + self._named(name, module, "", module.always)
        if unit in module.imports:
            return list(module.imports[unit])
        if stars := self._through_stars(module, unit):
            return stars
        submodule = f"{name}.{unit}"
        if unit != "*" and self._project_module(submodule) is not None:
            return [(submodule, None)]
        return [(name, None)]  # defined in a way that the source does not show

    def _named(
        self, name: str, module: ModuleSource, unit: str, statements: list[ast.stmt]
    ) -> list[_Unit]:
        """Record the text of statements; return the definitions that it names."""
        bare = [without_docs(statement) for statement in statements]
        self._texts[module.name, unit] = "\n".join(ast.unparse(statement) for statement in bare)
        nodes = [node for statement in bare for node in ast.walk(statement)]
        imports = {name: list(sources) for name, sources in module.imports.items()}
        for node in nodes:
            module.add_imports(imports, node)
        local = {name for statement in bare for name in bound_names(statement)}
        reached: list[_Unit] = []
        attributes = {id(n.value): n.attr for n in nodes if isinstance(n, ast.Attribute)}
        for node in nodes:
            if not isinstance(node, ast.Name):
                continue
            if node.id in imports:
                inner = attributes.get(id(node))
                for source, attribute in imports[node.id]:
                    as_module = source if attribute is None else f"{source}.{attribute}"
                    if inner is not None and self._project_module(as_module) is not None:
                        reached.append((as_module, inner))  # film_etl.etl: that definition only
                    else:
                        reached.append((source, attribute))
            elif node.id in module.units:
                if node.id != unit:
                    reached.append((name, node.id))
            elif node.id not in local | module.bound | _BUILTINS:
                if stars := self._through_stars(module, node.id):
                    reached += stars
                else:
                    self._texts[module.name, f"{unit}.{node.id}"] = _unresolved(name, node.id)
        return reached

    def _through_stars(self, module: ModuleSource, unit: str) -> list[_Unit]:
        """Definitions that `from module import *` may bind a name to."""
        reached: list[_Unit] = []
        for star in module.stars:
            source = self._project_module(star)
            if source is None:
                if unit in _public_names(star):
                    reached.append((star, None))
            elif unit in source.units or unit in source.imports or unit in source.bound:
                reached.append((star, unit))
            else:
                reached += self._through_stars(source, unit)
        return reached

    def _project_module(self, name: str) -> ModuleSource | None:
        if name.partition(".")[0] == "raysys":
            return None
        module = module_source(name)
        return module if module and module.path.is_relative_to(self._root) else None


@functools.cache
def _public_names(package: str) -> frozenset[str]:
    """Names of an installed module, which is imported."""
    try:
        return frozenset(vars(importlib.import_module(package)))
    except ImportError:
        return frozenset()


@functools.cache
def _unresolved(module: str, name: str) -> str:
    """Text of a name without a source: another one in every process."""
    _log.warning(
        "%s: no source defines %r, so code that uses it counts as changed in every process. "
        "Import or assign it in the module", module, name,
    )  # fmt: skip
    return secrets.token_hex(16)


def _bytecode(value: Any, seen: set[int]) -> Any:
    """Content of a function or class without source, with the functions that it names."""
    if id(value) in seen:
        return "seen"
    seen.add(id(value))
    if is_installed(value.__module__):
        package = value.__module__.partition(".")[0]
        return value.__module__, value.__qualname__, _version(package)
    if isinstance(value, type):
        members = [(name, m) for name, m in sorted(vars(value).items()) if hasattr(m, "__code__")]
        return value.__qualname__, [(name, _bytecode(m, seen)) for name, m in members]
    code = value.__code__
    named = []
    for name in sorted(_global_names(code) & value.__globals__.keys()):
        used = value.__globals__[name]
        if isinstance(used, types.FunctionType | type):
            has_source = module_source(used.__module__) is not None
            named.append((name, code_digest(used) if has_source else _bytecode(used, seen)))
        elif isinstance(used, types.ModuleType):
            source = module_source(used.__name__)
            named.append((name, _unit_digest(used.__name__, None) if source else used.__name__))
        elif isinstance(used, bool | int | float | str | bytes):
            named.append((name, used))
    return sys.version_info[:2], _constant(code, value.__doc__), named


def _global_names(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(_global_names(code) for code in inner))


def _constant(value: Any, docstring: str | None = None) -> Any:
    """Bytecode, or a constant of bytecode, in a form of which `repr` is equal everywhere."""
    if isinstance(value, types.CodeType):
        constants = [_constant(item) for item in value.co_consts if item != docstring]
        return value.co_code, value.co_names, value.co_freevars, constants
    if isinstance(value, tuple):
        return tuple(_constant(item) for item in value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


@functools.cache
def _version(package: str) -> str:
    """Version of an installed package; digest of the files of raysys."""
    if package == "raysys":
        digest = hashlib.blake2b(digest_size=16)
        folder = Path(__file__).parents[1]
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
        return digest.hexdigest()
    if package in sys.stdlib_module_names:
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # A distribution of another name, such as scikit-learn's: finding it reads all RECORDs.
        spec = find_spec(package)
        places = spec.submodule_search_locations or [] if spec else []
        names = ("__init__.py", "_version.py", "version.py")
        files = [Path(place) / name for place in places for name in names]
        return _hash([file.read_bytes() for file in files if file.exists()])
