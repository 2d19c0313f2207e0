"""`python -m benchmarks.data`: the data layer and what it would be written with by hand."""

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
    """Run all of it."""
    asked = arguments(__doc__)
    report = Report()
    for part in (outofcore, pipeline, handoff, quarantine, featurizer, malformed, flights):
        part.run(report, asked.quick)
    report.write(asked.json)


if __name__ == "__main__":
    main()
