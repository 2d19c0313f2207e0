"""Checks of a job's folder before it is packed and sent."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections import Counter
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

from raysys.errors import RaysysError
from raysys.ray_internals import packaging

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_MIB = 1 << 20
_LARGEST = 3
# Names that Python and some libraries have too, and that none of them imports.
_HARMLESS = {"example", "examples", "test", "tests"}


def check_folder(folder: Path, excludes: Sequence[str]) -> None:
    """Check the files of a folder that would be sent with a job.

    Args:
        folder: Absolute path.
        excludes: Patterns of files that stay here, as in `.gitignore`.

    Raises:
        RaysysError: There is more than a cluster takes, or a file hides a module that Ray or raysys
            imports: the workers of such a job would not start, and the job would wait for them.
    """
    files = packaging.packed_files(folder, excludes)
    check_names(folder, files)
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    total, limit = sum(sizes.values()), packaging.max_package_bytes()
    if total < limit:
        return
    entries: Counter[str] = Counter()
    for name, size in sizes.items():
        top, slash, _ = name.partition("/")
        entries[top + slash] += size
    large = [name for name, size in entries.most_common(_LARGEST) if size > total / 100]
    ignored = ", ".join(f"/{name}" for name in large)
    raise RaysysError(
        f"{folder} has {_size(total)} in {len(sizes)} files to send with the job, and a cluster "
        f"takes {_size(limit)}. The largest files: {_listed(Counter(sizes))}; the largest entries: "
        f"{_listed(entries)}. Name in {folder / '.rayignore'} what the job does not import, such "
        f"as {ignored}; a job reads data from a path or URI that all nodes see"
    )


def check_names(folder: Path, files: Iterable[Path]) -> None:
    """Refuse files of a folder that hide a module which Ray or raysys imports.

    Workers look for modules in the job's folder first.

    Raises:
        RaysysError: There is such a file.
    """
    for file in files:
        place = file.relative_to(folder)
        if file.suffix != ".py" or len(place.parts) > 2:
            continue
        if len(place.parts) == 2 and file.name != "__init__.py":
            continue
        name = place.parts[0].removesuffix(".py")
        if name in _HARMLESS:
            continue
        if name in sys.stdlib_module_names:
            owner = "Python's standard library"
        elif not (owner := _library_with(name, folder)):
            continue
        raise RaysysError(
            f"{file} hides the module {name!r} of {owner}, and Ray would not start: rename "
            f"{place.parts[0]!r}, for example to 'my_{place.parts[0]}'"
        )


def _library_with(name: str, folder: Path) -> str:
    """The library that installs a module and that Ray or raysys need; empty without one."""
    elsewhere = [path for path in sys.path if path and not path.startswith(str(folder))]
    if name == "raysys" or PathFinder.find_spec(name, elsewhere) is None:
        return ""
    needed = _requirements("raysys", "ray")
    distributions = importlib.metadata.packages_distributions().get(name, [])
    return next((library for library in distributions if _normal(library) in needed), "")


def _requirements(*libraries: str) -> set[str]:
    """Libraries and all that they need, without extras; normalised names."""
    needed: set[str] = set()
    remaining = list(libraries)
    while remaining:
        library = _normal(remaining.pop())
        if library in needed:
            continue
        needed.add(library)
        try:
            lines = importlib.metadata.requires(library) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        remaining += [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    return needed


def _normal(library: str) -> str:
    return re.sub(r"[-_.]+", "-", library).lower()


def _listed(sizes: Counter[str]) -> str:
    return ", ".join(f"{name} ({_size(size)})" for name, size in sizes.most_common(_LARGEST))


def _size(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB" if size >= _MIB else f"{size:,} bytes"
