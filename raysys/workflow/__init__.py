"""Jobs of steps: Ray tasks with resources, retries and kept results, and the record of a run."""

from raysys.identity import InputFiles
from raysys.workflow._diagram import draw_record
from raysys.workflow._job import Job, Progress
from raysys.workflow._job_command import parse, run_job
from raysys.workflow._prune import prune
from raysys.workflow._run_context import Run
from raysys.workflow._step import Options, Step

__all__ = [
    "InputFiles",
    "Job",
    "Options",
    "Progress",
    "Run",
    "Step",
    "draw_record",
    "parse",
    "prune",
    "run_job",
]
