"""`python -m benchmarks.tune`: searches for settings, and tuning the training itself."""

from benchmarks._figures import Report, arguments
from benchmarks.tune import search, throughput


def main() -> None:
    """Run all of it."""
    asked = arguments(__doc__)
    report = Report()
    for part in (search, throughput):
        part.measure(report, asked.quick)
    report.write(asked.json)


if __name__ == "__main__":
    main()
