"""`python -m benchmarks.tune`: searches for settings, and tuning the training itself."""

from benchmarks._figures import run
from benchmarks.tune import search, throughput

if __name__ == "__main__":
    run(__doc__, search.measure, throughput.measure)
