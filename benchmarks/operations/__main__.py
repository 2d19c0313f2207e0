"""`python -m benchmarks.operations`: what it costs to submit jobs."""

from benchmarks._figures import run
from benchmarks.operations import submission

if __name__ == "__main__":
    run(str(__doc__), submission.first_line)
