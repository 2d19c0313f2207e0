"""The flight delay job on every 24th flight, from raw rows to HTTP responses."""

import json
import re
import shlex
import shutil
import subprocess
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import flight_delays
from jobs.flight_delays import Config
from jobs.flight_etl import package_folder
from jobs.flight_features import FEATURES
from jobs.flight_graph import FlightGraph, build_graph, request_of
from jobs.flight_schedule import Flights
from raysys import serve
from raysys.models import ModelStore
from raysys.serve import Endpoint
from raysys.storage import Storage
from raysys.workflow import parse

BAD = (
    "2013,1,1,517,515,2,830,819,11,UA,1,N14228,BOS,IAH,227,1400,5,15,2013-01-01T10:00:00Z",
    "2013,1,1,517,515,2,830,819,11,UA,2,N14228,EWR,IAH,227,1400,5,75,2013-01-01T10:00:00Z",
    "2013,1,1,NA,515,NA,830,819,11,UA,3,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z",
    "2013,1,1,517,515,2,830,819,11,UA,4,N14228,EWR,IAH,227,1400,5,15,on New Year's Day",
)


class Finished:
    """A completed run of the job."""

    def __init__(self, storage: Storage, output: str, rows: int) -> None:
        self.storage, self.output, self.rows = storage, output, rows
        self.folder = next(Path(storage.uri("runs")).iterdir())
        self.record: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        url = next(word for word in output.split() if word.endswith("/late"))
        self.endpoint = Endpoint("flight_delays", 1, url.removesuffix("/late"), "/late")
        self.model = ModelStore(storage).get("flight_delays", "champion")


@pytest.fixture(scope="module")
def finished(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from contextlib import redirect_stdout
    from io import StringIO

    folder = tmp_path_factory.mktemp("job")
    (folder / "data").mkdir()
    for name in ("weather.csv", "planes.csv", "airports.csv"):
        shutil.copy(package_folder() / name, folder / "data")
    with zipfile.ZipFile(package_folder() / "flights.csv.zip") as archive:
        header, *lines = archive.read("flights.csv").decode().splitlines()
    sample = lines[::24]
    (folder / "data" / "flights.csv").write_text("\n".join([header, *sample, *BAD]) + "\n")
    storage, output = Storage(folder / "storage"), StringIO()
    with redirect_stdout(output):
        config = Config(
            data=str(folder / "data"), storage=storage.root, boost_trials=1, num_boost_round=30,
            epochs=1, compare=False, port=18434,
        )  # fmt: skip
        flight_delays.make_job(config).run()
    yield Finished(storage, output.getvalue(), len(sample))
    serve.shutdown()


def test_all_steps_ran_and_no_rows_passed_through_the_driver(finished: Finished) -> None:
    steps = {step["name"]: step for step in finished.record["steps"]}
    assert list(steps) == [
        "etl", "make features", "fit featurizer", "look for leaks", "tune boosting", "boost",
        "train network", "combine models", "score", "fit blend", "store model", "evaluate",
        "publish",
    ]  # fmt: skip
    rowless = ("etl", "tune boosting", "boost", "fit blend", "store model", "evaluate", "publish")
    assert {name: steps[name]["driver_table_bytes"] for name in rowless} == dict.fromkeys(
        rowless, 0
    )


def test_bad_rows_are_in_quarantine_with_their_reason(finished: Finished) -> None:
    facts = finished.record["facts"]
    assert facts["quarantined_flights"] == len(BAD)
    rows = pq.read_table(finished.folder / "quarantine_flights").to_pylist()
    reasons = {row["_line"] - 2 - finished.rows: row["_reason"] for row in rows}
    for place, text in enumerate(("origin", "minute", "landed flights have left", "time_hour")):
        assert text in reasons[place]
    assert facts["quarantined_weather"] == 1
    assert "wind_speed" in str(facts["quarantine_reasons_weather"])


def test_months_are_split_without_leaks(finished: Finished) -> None:
    facts = finished.record["facts"]
    train, validation, test = (facts["tables"][n]["rows"] for n in ("train", "validation", "test"))
    assert train + validation + test < finished.rows  # without cancelled flights
    assert 0.7 < train / finished.rows < 0.8
    assert 0.07 < validation / finished.rows < 0.1
    report = json.loads((finished.folder / "leaks.json").read_text())
    assert not [finding for finding in report["findings"] if finding["certain"]]
    assert any("fitted" in sentence for sentence in report["checks"])


def test_all_models_are_evaluated_on_the_test_months(finished: Finished) -> None:
    results = json.loads((finished.folder / "test months.json").read_text())
    assert list(results) == [
        "XGBoost alone", "network alone", "raysys",
    ]  # fmt: skip
    for measures in results.values():
        assert 0.65 < measures["auc"] < 0.85
        assert 0.4 < measures["average_precision"] < 0.7
        assert 0 < measures["calibration_error"] < 0.1
    assert results["raysys"]["auc"] > results["network alone"]["auc"]


def test_the_endpoint_returns_the_predictions_of_the_stored_model(finished: Finished) -> None:
    folder = finished.model.fetch(finished.storage)
    flights = pq.read_table(folder / "flights.parquet").take(np.arange(5, finished.rows, 750))
    requests = [request_of(row) for row in flights.to_pylist()]
    for request in requests:
        request["tailnum"] = request["tailnum"] or ""
    columns = {name: [request[name] for request in requests] for name in requests[0]}
    model = FlightGraph(folder)
    features = build_graph(model, "features")(columns)
    np.testing.assert_array_equal(features, model.features(Flights.of(flights)))
    assert features.shape == (len(requests), len(FEATURES))
    expected = build_graph(model)(columns)
    for request, answer in list(zip(requests, expected, strict=True))[::3]:
        response = finished.endpoint.predict(request)
        assert response["boosted"] == answer["boosted"]
        assert response["probability_late"] == pytest.approx(answer["probability_late"], rel=1e-5)
        assert response["late"] == (response["probability_late"] > 0.5)
        assert response["unknown"] == [] if request["tailnum"] else ["tailnum"]
    assert len({answer["probability_late"] for answer in expected}) > len(expected) / 2


REQUEST = {
    "carrier": "B6", "flight": 915, "tailnum": None, "origin": "JFK", "dest": "SFO",
    "sched_dep": "2013-12-17T18:30:00-05:00", "sched_arr": "2013-12-17T22:05:00-08:00",
}  # fmt: skip


def test_unknown_values_are_accepted_and_reported(finished: Finished) -> None:
    answer = finished.endpoint.predict(
        REQUEST | {"carrier": "ZZ", "dest": "XXX", "tailnum": "N0NE"}
    )
    assert set(answer["unknown"]) == {"carrier", "dest", "tailnum"}
    assert 0 < answer["probability_late"] < 1
    without = {name: value for name, value in REQUEST.items() if name != "tailnum"}
    assert finished.endpoint.predict(without) == finished.endpoint.predict(REQUEST)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("carrier", 6),
        ("flight", "many"),
        ("flight", -1),
        ("sched_dep", "2013-12-17T18:30:00"),  # no offset
        ("sched_dep", "at noon"),
        ("sched_arr", "2013-12-17T15:29:00-08:00"),  # before it leaves
        ("sched_arr", "2013-12-19T22:05:00-08:00"),
    ],
)
def test_bad_input_names_the_field(finished: Finished, field: str, value: object) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        finished.endpoint.predict(REQUEST | {field: value})
    assert refused.value.code == 422
    assert json.load(refused.value)["detail"][0]["loc"] == [field]


def test_the_curl_line_works_as_printed(finished: Finished) -> None:
    line = next(line for line in finished.output.splitlines() if "curl" in line)
    command = shlex.split(line[line.index("curl") :])
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert f"{answer['probability_late']:.0%} likely" in finished.output


def test_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Config, ["--help"])
    flags = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert flags == {
        "--boost-trials", "--compare", "--config", "--data", "--epochs", "--from", "--help",
        "--host", "--no-compare", "--no-serve", "--num-boost-round", "--port", "--seed", "--serve",
        "--steps", "--storage", "--verbose", "--workers",
    }  # fmt: skip
