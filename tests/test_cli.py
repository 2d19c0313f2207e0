"""The commands that README names, against a real head of their own."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from raysys import cli
from raysys.data import Lineage
from raysys.errors import RaysysError
from raysys.storage import Storage

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    storage = tmp_path_factory.mktemp("cli")
    env = {**os.environ, "RAYSYS_STORAGE": str(storage), "RAY_AUTH_MODE": "token"}
    env.pop("RAY_ADDRESS", None)
    yield env
    subprocess.run([BIN / "raysys", "down"], env=env, check=True)


def call(env: dict[str, str], *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)


def head(env: dict[str, str]) -> dict[str, str]:
    return json.loads((Path(env["RAYSYS_STORAGE"]) / "cluster/local.json").read_text())


def test_submit_starts_a_head_and_streams_the_job(environment: dict[str, str]) -> None:
    done = call(environment, BIN / "raysys", "submit", "jobs/recommender.py", "--", "--help")
    assert done.returncode == 0, done.stderr
    assert "--strategy {ddp,fsdp,zero1,zero2,zero3,pipeline}" in done.stdout
    assert head(environment)["dashboard_url"] in done.stdout


def test_the_dashboard_wants_the_token(environment: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head(environment)['dashboard_url']}/api/jobs/", timeout=30)
    assert refused.value.code in (401, 403)


def test_a_failing_job_is_one_line_and_a_status(environment: dict[str, str]) -> None:
    flags = ["--", "--ratings", "/no/such/file.csv", "--storage", environment["RAYSYS_STORAGE"]]
    done = call(environment, BIN / "raysys", "submit", "jobs/recommender.py", *flags)
    assert done.returncode == 1
    assert "error: /no/such/file.csv: no such file" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1


def test_ray_job_submit_by_hand_works_as_well(environment: dict[str, str]) -> None:
    env = {**environment, "RAY_ADDRESS": head(environment)["dashboard_url"]}
    command = [
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "jobs.recommender",
        "--help",
    ]
    done = call(env, BIN / "ray", *command)
    assert done.returncode == 0, done.stderr
    assert "--strategy {ddp,fsdp,zero1,zero2,zero3,pipeline}" in done.stdout


def test_down_ends_the_head_and_only_once(environment: dict[str, str]) -> None:
    dashboard = head(environment)["dashboard_url"]
    assert "stopped" in call(environment, BIN / "raysys", "down").stdout
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(dashboard, timeout=30)
    assert "nothing to stop" in call(environment, BIN / "raysys", "down").stdout


def test_a_job_that_is_no_file_is_named(environment: dict[str, str]) -> None:
    done = call(environment, BIN / "raysys", "submit", "jobs/nothing.py")
    assert done.returncode == 1
    assert "jobs/nothing.py: no such file" in done.stderr


@pytest.mark.parametrize("flags", ["--strategy zero2", "--compare", "--ratings FILE"])
def test_make_demo_passes_its_flags_on(flags: str) -> None:
    made = subprocess.run(
        ["make", "-n", "demo", f"ARGS={flags}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"jobs/recommender.py -- {flags}\n" in made.stdout


FLIGHTS = "id,carrier,delay\n" + "".join(f"{n},{'AB'[n % 2]}A,{n % 30}\n" for n in range(200))


@pytest.mark.usefixtures("ray_cluster")
def test_a_schema_is_inferred_and_the_next_file_checked_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flights.csv").write_text(FLIGHTS)
    Path("next.csv").write_text(FLIGHTS.replace("\n7,BA,7", "\n7,ZZ,soon").replace("9,BA", "8,BA"))
    Path("carriers.csv").write_text("code\nAA\nBA\n")
    runner = CliRunner()
    inferred = runner.invoke(cli.app, ["data", "infer", "flights.csv"], catch_exceptions=False)
    assert inferred.exit_code == 0
    text = inferred.stdout.replace("allowed: [AA, BA]", "key: carriers.code")
    assert "key: carriers.code" in text
    Path("S.yaml").write_text(text)
    flags = ["--schema", "S.yaml", "--tables", "carriers=carriers.csv"]
    good = runner.invoke(cli.app, ["data", "check", "flights.csv", *flags], catch_exceptions=False)
    assert good.exit_code == 0
    assert "200 rows: 200 good, 0 in quarantine\n  holds: rows: 200" in good.stdout
    bad = runner.invoke(
        cli.app, ["data", "check", "next.csv", *flags, "--quarantine", "bad.parquet"],
        catch_exceptions=False,
    )  # fmt: skip
    assert bad.exit_code == 1
    place = f"{tmp_path}/next.csv: row 7"
    assert f"  1 x carrier is not in carriers.code; first in {place}\n" in bad.stdout
    assert f"  1 x delay is no int64; first in {place}\n" in bad.stdout
    assert "  20 x id: stands in an earlier row" in bad.stdout
    assert pd.read_parquet("bad.parquet")["delay"][0] == "soon"


@pytest.mark.usefixtures("ray_cluster")
def test_a_broken_table_check_is_said_with_all_figures(tmp_path: Path) -> None:
    file, schema = tmp_path / "flights.csv", tmp_path / "S.yaml"
    file.write_text(FLIGHTS)
    schema.write_text(
        "name: f\ncolumns: {delay: {type: int64}}\n"
        "distributions: {delay: {median: [0, 9], max: [0, 40]}}\n"
    )
    done = CliRunner().invoke(cli.app, ["data", "check", str(file), "--schema", str(schema)])
    assert done.exit_code == 1
    assert isinstance(done.exception, RaysysError)
    assert "FAILS: delay median: 14, bounds: from 0 to 9\n" in done.stdout
    assert "holds: delay max: 29, bounds: from 0 to 40\n" in done.stdout


def test_a_missing_schema_is_named() -> None:
    done = CliRunner().invoke(cli.app, ["data", "check", "f.csv", "--schema", "none.yaml"])
    assert "none.yaml: no such file. `raysys data infer f.csv` writes" in str(done.exception)


def test_lineage_goes_from_a_run_back_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_STORAGE", str(tmp_path))
    files = {"files": [{"file": "/data/a.csv", "bytes": 12, "modified": "2013-01-01"}]}
    read = Lineage("read csv", files, rows=7)
    last = Lineage("filter", {"predicate": "x > 1"}, (read,), rows=3, fingerprint="f00")
    storage = Storage()
    lineage = last.write(storage)
    facts = {"tables": {"train": {"rows": 3, "fingerprint": "f00", "lineage": lineage}}}
    record = {"id": "job-1", "git_commit": "c0ffee", "facts": facts}
    storage.write_json("runs/job-1/run.json", record)

    of_run = CliRunner().invoke(cli.app, ["lineage", "job-1"]).stdout
    for part in ("c0ffee", "train: 3 rows, fingerprint f00", "x > 1", "file /data/a.csv, 12 bytes"):
        assert part in of_run
    of_table = CliRunner().invoke(cli.app, ["lineage", lineage]).stdout
    assert of_table.strip() in of_run
    assert of_table.index("filter, 3 rows") < of_table.index("read csv, 7 rows")
    unknown = CliRunner().invoke(cli.app, ["lineage", "no-such"])
    assert isinstance(unknown.exception, RaysysError)
    assert "'no-such' is no Table, run or model" in str(unknown.exception)
