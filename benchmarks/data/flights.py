"""The flight job's models against scikit-learn's boosting, on unseen months."""

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
    """Run the job without its endpoint, and compare with the better peer."""
    with tempfile.TemporaryDirectory() as root:
        trials = 1 if quick else flight_delays.Config().boost_trials
        config = flight_delays.Config(storage=root, boost_trials=trials, serve=False)
        flight_delays.make_job(config).run()
        (folder,) = Path(Storage(root).uri("runs")).iterdir()
        results = json.loads((folder / "test months.json").read_text())
        steps = json.loads((folder / "run.json").read_text())["steps"]
    for name, label in MEASURES.items():
        for model in (*PEERS, *ALONE):
            report.add(f"{model}: {label}", results[model][name], "share")
        best = max(results[peer][name] for peer in PEERS)
        report.add(f"raysys: {label}", results["raysys"][name], "share", above=best)
    for model in (*PEERS, *ALONE):
        error = results[model]["calibration_error"]
        report.add(f"{model}: calibration error", error, "share")
    error = results["raysys"]["calibration_error"]
    report.add("raysys: calibration error", error, "share", below=0.02)
    report.add("flight job without its endpoint", sum(s["seconds"] for s in steps), "s")
