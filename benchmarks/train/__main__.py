"""`python -m benchmarks.train`: training, and what it would be written with by hand."""

from benchmarks._figures import Report, arguments
from benchmarks.train import boosting, equality, kills, memory, pipeline, speed


def main() -> None:
    """Run all of it."""
    asked = arguments(__doc__)
    report = Report()
    for part in (speed, equality, memory, pipeline, boosting, kills):
        part.measure(report, asked.quick)
    report.write(asked.json)


if __name__ == "__main__":
    main()
