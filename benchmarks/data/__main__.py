"""`python -m benchmarks.data`: the data layer against polars, pandas and Modin."""

from benchmarks._figures import Report, arguments
from benchmarks.data import (
    featurizer,
    flights,
    handoff,
    malformed,
    outofcore,
    pipeline,
    quarantine,
)


def main() -> None:
    """Run all benchmarks of the data layer."""
    options = arguments(__doc__)
    report = Report()
    for part in (outofcore, pipeline, handoff, quarantine, featurizer, malformed, flights):
        part.run(report, options.quick)
    report.write(options.json)


if __name__ == "__main__":
    main()
