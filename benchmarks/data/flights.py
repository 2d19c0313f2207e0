"""The flight job's models beside scikit-learn's boosting, on the months that none has seen."""

import json
import tempfile
from pathlib import Path

from benchmarks._figures import Report
from jobs import flight_delays
from raysys.storage import Storage

PEERS = ("HistGradientBoosting", "HistGradientBoosting tuned")
MEASURES = {"auc": "area under the ROC curve", "average_precision": "average precision"}
ALONE = ("XGBoost alone", "network alone")


def run(report: Report, quick: bool) -> None:
    """Run the job without its endpoint, and hold its figures against the better peer's."""
    with tempfile.TemporaryDirectory() as root:
        trials = 1 if quick else flight_delays.Config().boost_trials
        config = flight_delays.Config(storage=root, boost_trials=trials, serve=False)
        flight_delays.make_job(config).run()
        (folder,) = Path(Storage(root).uri("runs")).iterdir()
        results = json.loads((folder / "test months.json").read_text())
        steps = json.loads((folder / "run.json").read_text())["steps"]
    for name, words in MEASURES.items():
        for contestant in (*PEERS, *ALONE):
            report.add(f"{contestant}: {words}", results[contestant][name], "share")
        best = max(results[peer][name] for peer in PEERS)
        report.add(f"raysys: {words}", results["raysys"][name], "share", above=best)
    for contestant in (*PEERS, *ALONE):
        error = results[contestant]["calibration_error"]
        report.add(f"{contestant}: calibration error", error, "share")
    error = results["raysys"]["calibration_error"]
    report.add("raysys: calibration error", error, "share", below=0.02)
    report.add("flight job without its endpoint", sum(s["seconds"] for s in steps), "s")
