"""Ray's packing of a job's folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from raysys.imports import lazy_import

packaging = lazy_import("ray._private.runtime_env.packaging")


def max_package_bytes() -> int:
    """Largest package that a cluster takes from a submission, in bytes."""
    return int(packaging.GCS_STORAGE_MAX_SIZE)


def packed_files(folder: Path, excludes: Sequence[str]) -> list[Path]:
    """Files that Ray sends: those that neither patterns nor `.gitignore` or `.rayignore` exclude.

    Args:
        folder: Absolute path.
        excludes: Patterns as in `.gitignore`.
    """
    files: list[Path] = []
    matches = packaging._get_excludes(folder, list(excludes))

    def add(path: Path) -> None:
        if path.is_file():
            files.append(path)

    quiet = logging.getLogger(__name__)
    packaging._dir_travel(folder, [matches], add, include_gitignore=True, logger=quiet)
    return files
