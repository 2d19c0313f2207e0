"""Which code a function runs: its own, and what of the project it reaches, as a digest.

The project is what lies in the folder that the function's module was imported from. Source is
read, not run: a definition counts with every definition that its text names, across modules, so
that an edit elsewhere in a module changes nothing. Comments, layout and docstrings do not count.
Of other packages the version counts, of raysys the content. What is reached only through a string
(`getattr`, `importlib`) or an instance that is passed along is not seen.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

from raysys.errors import RaysysError


def code_digest(function: Any) -> str:
    """Digest of the code that a function or class of a module runs.

    Raises:
        RaysysError: Its source is not in a file.
    """
    name, qualified = function.__module__, function.__qualname__
    start = _module(name)
    if start is None:
        raise RaysysError(
            f"{name}.{qualified} has no source file, so that its code cannot be told from "
            "another: define it in a module"
        )
    unit = qualified.partition(".")[0]
    reach = _Reach(_root(name, start))
    reach.visit(name, unit if unit in start.units else None)
    return reach.digest()


class _Module:
    """The parsed source of a module.

    Attributes:
        units: Statements by the top-level name that they define.
        imports: Module and attribute (None for the module itself) by the name that they get.
        always: Statements that run whatever is asked of the module.
    """

    def __init__(self, name: str, path: Path, is_package: bool) -> None:
        self.path = path
        self._package = name if is_package else name.rpartition(".")[0]
        self.units: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.always: list[ast.stmt] = []
        self._sort(ast.parse(path.read_text()).body)

    def _sort(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if isinstance(statement, ast.If) and _names_only_types(statement.test):
                self._sort(statement.orelse)
            elif isinstance(statement, ast.If) and _is_main(statement.test):
                continue
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= self.imported(statement)
            elif not _is_text(statement):
                defined = _defined(statement)
                for name in defined:
                    self.units.setdefault(name, []).append(statement)
                if not defined:
                    self.always.append(statement)

    def imported(self, statement: ast.stmt) -> dict[str, tuple[str, str | None]]:
        """What an import gives names to."""
        if isinstance(statement, ast.Import):
            return {
                alias.asname or alias.name.partition(".")[0]: (
                    alias.name if alias.asname else alias.name.partition(".")[0],
                    None,
                )
                for alias in statement.names
            }
        if isinstance(statement, ast.ImportFrom):
            above = self._package.split(".")[: 1 - statement.level or None]
            parts = [*(above if statement.level else []), *filter(None, [statement.module])]
            return {a.asname or a.name: (".".join(parts), a.name) for a in statement.names}
        return {}


class _Reach:
    """Gathers what is reached from a definition."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: set[tuple[str, str | None]] = set()
        self._texts: dict[tuple[str, str], str] = {}
        self._packages: set[str] = set()

    def digest(self) -> str:
        said = sorted((*key, text) for key, text in self._texts.items())
        versions = sorted((package, _version(package)) for package in self._packages)
        text = repr((sys.version_info[:2], said, versions))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def visit(self, name: str, unit: str | None) -> None:
        """Take in a definition of a module, or the whole module."""
        waiting = [(name, unit)]
        while waiting:
            here = waiting.pop()
            if here not in self._seen:
                self._seen.add(here)
                waiting += self._take(*here)

    def _take(self, name: str, unit: str | None) -> list[tuple[str, str | None]]:
        module = self._of_project(name)
        if module is None:
            self._packages.add(name.partition(".")[0])
            return []
        if unit is None:
            found: list[tuple[str, str | None]] = [(name, one) for one in module.units]
            return found + self._used(name, module, "", module.always)
        if unit in module.units:
            reached = self._used(name, module, unit, module.units[unit])
            return reached + self._used(name, module, "", module.always)
        if unit in module.imports:
            return [module.imports[unit]]
        below = f"{name}.{unit}"
        if unit != "*" and self._of_project(below) is not None:
            return [(below, None)]
        return [(name, None)]  # made in a way that the source does not show

    def _used(
        self, name: str, module: _Module, unit: str, statements: list[ast.stmt]
    ) -> list[tuple[str, str | None]]:
        """Note the text of statements; the definitions that it names."""
        bare = [_bare(statement) for statement in statements]
        self._texts[name, unit] = "\n".join(ast.unparse(statement) for statement in bare)
        nodes = [node for statement in bare for node in ast.walk(statement)]
        imports = dict(module.imports)
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports |= module.imported(node)
        found: list[tuple[str, str | None]] = []
        attributes = {
            id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)
        }
        for node in nodes:
            if not isinstance(node, ast.Name):
                continue
            if node.id in imports:
                source, attribute = imports[node.id]
                inner = attributes.get(id(node))
                as_module = source if attribute is None else f"{source}.{attribute}"
                if inner is not None and self._of_project(as_module) is not None:
                    found.append((as_module, inner))  # film_etl.etl: the one definition
                else:
                    found.append((source, attribute))
            elif node.id in module.units and node.id != unit:
                found.append((name, node.id))
        return found

    def _of_project(self, name: str) -> _Module | None:
        if name.partition(".")[0] == "raysys":
            return None
        module = _module(name)
        return module if module and module.path.is_relative_to(self._root) else None


@functools.cache
def _module(name: str) -> _Module | None:
    if name == "__main__":
        file = getattr(sys.modules[name], "__file__", None)
        return _Module(name, Path(file).resolve(), False) if file else None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).resolve()
    if "site-packages" in path.parts or path.is_relative_to(_STANDARD):
        return None
    return _Module(name, path, bool(spec.submodule_search_locations))


_STANDARD = Path(ast.__file__).resolve().parent


def _root(name: str, module: _Module) -> Path:
    """The folder from which a module was imported."""
    is_package = module.path.name == "__init__.py"
    return module.path.parents[name.count(".") + is_package]


@functools.cache
def _version(package: str) -> str:
    """Of the distribution of a package; of raysys the content of its files."""
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
        owners = _distributions().get(package, [])
        return ",".join(f"{one} {importlib.metadata.version(one)}" for one in sorted(owners))


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return {name: sorted(set(d)) for name, d in importlib.metadata.packages_distributions().items()}


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    return [
        node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)
    ]


def _names_only_types(test: ast.expr) -> bool:
    return ast.unparse(test).endswith("TYPE_CHECKING")


def _is_main(test: ast.expr) -> bool:
    return ast.unparse(test).startswith("__name__ ==")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _bare(statement: ast.stmt) -> ast.stmt:
    """A copy without docstrings and without the types of arguments, which only people read."""
    copy = ast.parse(ast.unparse(statement)).body[0]
    for node in ast.walk(copy):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
    return copy
