"""`python -m benchmarks.chaos`: faults in jobs and under an application, and what they cost.

`--only NAME` runs one of them: a fault under the application, such as `gateway`, or a job or one of
its steps, such as `recommender` or `recommender.build_index`. Needs root, for namespaces.
"""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks._figures import Report
from benchmarks.chaos import jobs, serving
from benchmarks.chaos._machines import is_possible


def main() -> None:
    """Run what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer faults, two steps of each job")
    parser.add_argument("--only", action="append", metavar="NAME", help="may be given again")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    asked = parser.parse_args()
    if not is_possible():
        raise SystemExit("namespaces cannot be made here: run it as root, with ip and unshare")
    only: list[str] = asked.only or []
    wanted = [name.partition(".")[0] for name in only]
    unknown = set(wanted) - {*jobs.JOBS, *serving.SCENARIOS}
    if unknown:
        raise SystemExit(f"{sorted(unknown)}: choose of {[*serving.SCENARIOS, *jobs.JOBS]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # namespaces are taken down
    report = Report()
    usual = serving.QUICK if asked.quick else tuple(serving.SCENARIOS)
    faults = [name for name in serving.SCENARIOS if name in (only or usual)]
    if faults:
        serving.measure(report, faults)
    for name in jobs.JOBS:
        if not only or name in wanted:
            steps = [one.partition(".")[2] for one in only if one.startswith(f"{name}.")]
            jobs.measure(report, name, steps, asked.quick)
    report.write(asked.json)


if __name__ == "__main__":
    main()
