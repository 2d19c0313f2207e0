"""`python -m benchmarks.scaling`: weak scaling on simulated nodes, and limits; see SCALING.md."""

from benchmarks._figures import run
from benchmarks.scaling import limits, weak

if __name__ == "__main__":
    run(__doc__, weak.measure, limits.measure)
