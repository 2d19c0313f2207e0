"""The definitions of a module, read from its source without running it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

_STANDARD_LIBRARY = Path(ast.__file__).resolve().parent


class ModuleSource:
    """The parsed source of a module.

    Attributes:
        units: Statements by the top-level name that they define.
        imports: Module and attribute (None for the module itself) by the imported name.
        always: Statements that run whenever the module is imported.
        root: The folder from which the module is imported.
    """

    def __init__(self, name: str, path: Path, is_package: bool) -> None:
        self.path, self.root = path, path.parents[name.count(".") + is_package]
        self._package = name if is_package else name.rpartition(".")[0]
        self.units: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.always: list[ast.stmt] = []
        self._sort(ast.parse(path.read_text()).body)

    def _sort(self, body: list[ast.stmt]) -> None:
        for statement in body:
            test = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
            if isinstance(statement, ast.If) and test.endswith("TYPE_CHECKING"):
                self._sort(statement.orelse)
            elif test.startswith("__name__ ==") or is_text(statement):
                continue
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= self.imported(statement)
            else:
                names = _defined_names(statement)
                for name in names:
                    self.units.setdefault(name, []).append(statement)
                if not names:
                    self.always.append(statement)

    def imported(self, statement: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
        """Module and attribute by the names that an import binds."""
        if isinstance(statement, ast.Import):
            return {
                alias.asname or alias.name.partition(".")[0]: (
                    alias.name if alias.asname else alias.name.partition(".")[0],
                    None,
                )
                for alias in statement.names
            }
        above = self._package.split(".")[: 1 - statement.level or None]
        parts = [*(above if statement.level else []), *filter(None, [statement.module])]
        return {a.asname or a.name: (".".join(parts), a.name) for a in statement.names}


@functools.cache
def module_source(name: str) -> ModuleSource | None:
    """Source of a module; None for installed packages, the standard library and binaries."""
    if name == "__main__":
        file = getattr(sys.modules[name], "__file__", None)
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
