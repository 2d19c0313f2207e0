"""Releases of the packages that wrote files."""

from __future__ import annotations

import logging
import re

from raysys.errors import StorageError

_log = logging.getLogger("raysys.identity")


def check_release(
    package: str, stored: str, present: str, what: str, *, equal: bool = False
) -> None:
    """Refuse what a later release of a package stored; an earlier one is a warning.

    Args:
        package: Name of the package.
        stored: Version that stored it.
        present: Version of this process.
        what: Stored object for messages, such as "the module at /models/digits".
        equal: Refuse an earlier release too. Releases differ in the first two numbers.

    Raises:
        StorageError: The release may predict differently.
    """
    then, now = (tuple(map(int, re.findall(r"\d+", version)[:2])) for version in (stored, present))
    if then > now or (equal and then != now):
        raise StorageError(
            f"{what} was stored by {package} {stored}, and {present} may predict differently: "
            "install the former, or train and store it again"
        )
    if then < now:
        _log.warning("%s was stored by %s %s and is read by %s", what, package, stored, present)
