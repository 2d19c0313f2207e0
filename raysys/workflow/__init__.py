"""A job's settings, its stages and their costs, and the record that a run leaves."""

from raysys.workflow._config import parse, run_job
from raysys.workflow._run import Run, Stage, say

__all__ = ["Run", "Stage", "parse", "run_job", "say"]
