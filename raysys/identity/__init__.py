"""Same code, same data, same run: digests of code and values, and the identity of a run."""

from raysys.identity._code_digest import code_digest
from raysys.identity._run_identity import RunIdentity
from raysys.identity._value_digest import InputFiles, digest

__all__ = ["InputFiles", "RunIdentity", "code_digest", "digest"]
