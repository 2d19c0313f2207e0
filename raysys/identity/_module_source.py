"""The definitions of a module, read from its source without running it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

_STANDARD_LIBRARY = Path(ast.__file__).resolve().parent


Imports = dict[str, list[tuple[str, str | None]]]
"""Modules and attributes by the names that imports bind."""


class ModuleSource:
    """The parsed source of a module.

    Attributes:
        name: Name of the module; of `python -m name` too.
        units: Statements by the top-level name that they define.
        imports: Modules and attributes (None for the module itself) by the imported name; several
            where branches import a name from different modules.
        stars: Modules of `from module import *`.
        always: Statements that run whenever the module is imported.
        bound: Names that those statements bind, or that only annotations use.
        root: The folder from which the module is imported.
    """

    def __init__(self, name: str, path: Path, is_package: bool) -> None:
        self.name = name
        self.path, self.root = path, path.parents[name.count(".") + is_package]
        self._package = name if is_package else name.rpartition(".")[0]
        self.units: dict[str, list[ast.stmt]] = {}
        self.imports: Imports = {}
        self.stars: list[str] = []
        self.always: list[ast.stmt] = []
        self.bound: set[str] = set()
        self._sort(ast.parse(path.read_text()).body)
        self.bound |= {name for statement in self.always for name in bound_names(statement)}

    def _sort(self, body: list[ast.stmt]) -> None:
        for statement in body:
            test = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
            if isinstance(statement, ast.If) and test.endswith("TYPE_CHECKING"):
                self._sort(statement.orelse)
                self.bound |= {name for part in statement.body for name in bound_names(part)}
            elif test.startswith("__name__ ==") or is_text(statement):
                continue
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                self.add_imports(self.imports, statement)
            else:
                names = _defined_names(statement)
                for name in names:
                    self.units.setdefault(name, []).append(statement)
                if not names:
                    self.always.append(statement)
                    for node in ast.walk(statement):  # imports of the branches of an if or a try
                        self.add_imports(self.imports, node)

    def add_imports(self, imports: Imports, node: ast.AST) -> None:
        """Add the names that a node binds if it is an import."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                imports.setdefault(alias.asname or module, []).append((module, None))
        elif isinstance(node, ast.ImportFrom):
            above = self._package.split(".")[: 1 - node.level or None]
            parts = [*(above if node.level else []), *filter(None, [node.module])]
            module = ".".join(parts)
            for alias in node.names:
                if alias.name == "*":
                    self.stars.append(module)
                else:
                    name = alias.asname or alias.name
                    imports.setdefault(name, []).append((module, alias.name))


@functools.cache
def module_source(name: str) -> ModuleSource | None:
    """Source of a module; None for installed packages, the standard library and binaries."""
    if name == "__main__":
        file = getattr(sys.modules[name], "__file__", None)
        run_as = getattr(sys.modules[name], "__spec__", None)
        name = run_as.name if run_as and "__main__" not in run_as.name else name
        return ModuleSource(name, Path(file).resolve(), False) if file else None
    spec = find_spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).resolve()
    if "site-packages" in path.parts or path.is_relative_to(_STANDARD_LIBRARY):
        return None
    return ModuleSource(name, path, bool(spec.submodule_search_locations))


@functools.cache
def is_installed(name: str) -> bool:
    """Whether a module belongs to an installed package or the standard library."""
    if name == "__main__" or module_source(name) is not None:
        return False
    return find_spec(name) is not None or name in sys.modules


def find_spec(name: str) -> ModuleSpec | None:
    """Spec of a module; None if it is not there or has none, as Cython's runtime."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring or another constant without effect."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def without_docs(statement: ast.stmt) -> ast.stmt:
    """A copy without docstrings and without annotations of parameters and results."""
    copy = ast.parse(ast.unparse(statement)).body[0]
    for node in ast.walk(copy):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
    return copy


def bound_names(statement: ast.AST) -> set[str]:
    """Names that a statement binds anywhere within it: variables, parameters, definitions."""
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
    return names


def _defined_names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    nodes = (node for target in targets for node in ast.walk(target))
    return [node.id for node in nodes if isinstance(node, ast.Name)]
