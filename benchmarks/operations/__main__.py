"""`python -m benchmarks.operations`: what it costs to submit jobs, and to submit them again."""

from benchmarks._figures import run
from benchmarks.operations import submission, unchanged

if __name__ == "__main__":
    run(str(__doc__), submission.first_line, unchanged.second)
