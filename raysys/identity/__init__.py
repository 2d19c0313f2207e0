"""Same code, same data, same run: digests of code and values, and the identity of a run."""

from raysys.identity._code_digest import code_digest, source_digest
from raysys.identity._package_release import check_release
from raysys.identity._run_identity import RunIdentity
from raysys.identity._value_digest import InputFiles, digest

__all__ = [
    "InputFiles",
    "RunIdentity",
    "check_release",
    "code_digest",
    "digest",
    "source_digest",
]
