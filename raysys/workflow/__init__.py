"""Jobs of steps: Ray tasks with resources, retries and stored results, and records of runs."""

from raysys.identity import InputFiles
from raysys.workflow._diagram import draw_record
from raysys.workflow._job import Job, StepProgress
from raysys.workflow._job_command import parse, run_job
from raysys.workflow._run_context import Run
from raysys.workflow._step import Step, StepOptions
from raysys.workflow._step_results import prune

__all__ = [
    "InputFiles",
    "Job",
    "Run",
    "Step",
    "StepOptions",
    "StepProgress",
    "draw_record",
    "parse",
    "prune",
    "run_job",
]
