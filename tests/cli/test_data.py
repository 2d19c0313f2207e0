"""`raysys data`."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from raysys import cli
from raysys.errors import RaysysError

FLIGHTS = "id,carrier,delay\n" + "".join(f"{n},{'AB'[n % 2]}A,{n % 30}\n" for n in range(200))


@pytest.mark.usefixtures("ray_cluster")
def test_a_schema_is_inferred_and_the_next_file_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flights.csv").write_text(FLIGHTS)
    Path("next.csv").write_text(FLIGHTS.replace("\n7,BA,7", "\n7,ZZ,soon").replace("9,BA", "8,BA"))
    Path("carriers.csv").write_text("code\nAA\nBA\n")
    runner = CliRunner()
    inferred = runner.invoke(cli.app, ["data", "infer", "flights.csv"], catch_exceptions=False)
    assert inferred.exit_code == 0
    text = inferred.stdout.replace("allowed: [AA, BA]", "foreign_key: carriers.code")
    assert "foreign_key: carriers.code" in text
    Path("S.yaml").write_text(text)
    flags = ["--schema", "S.yaml", "--tables", "carriers=carriers.csv"]
    good = runner.invoke(
        cli.app, ["data", "validate", "flights.csv", *flags], catch_exceptions=False
    )
    assert good.exit_code == 0
    assert "200 rows: 200 valid, 0 in quarantine\n  passed: rows: 200" in good.stdout
    bad = runner.invoke(
        cli.app, ["data", "validate", "next.csv", *flags, "--quarantine", "bad.parquet"],
        catch_exceptions=False,
    )  # fmt: skip
    assert bad.exit_code == 1
    place = f"{tmp_path}/next.csv: line 9"
    assert f"  1 x carrier is not in carriers.code; first in {place}\n" in bad.stdout
    assert f"  1 x delay is not a valid int64; first in {place}\n" in bad.stdout
    assert "  20 x duplicate id" in bad.stdout
    assert pd.read_parquet("bad.parquet")["delay"][0] == "soon"


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_table_check_is_printed_with_all_checks(tmp_path: Path) -> None:
    file, schema = tmp_path / "flights.csv", tmp_path / "S.yaml"
    file.write_text(FLIGHTS)
    schema.write_text(
        "name: f\ncolumns: {delay: {type: int64}}\n"
        "distributions: {delay: {median: [0, 9], max: [0, 40]}}\n"
    )
    done = CliRunner().invoke(cli.app, ["data", "validate", str(file), "--schema", str(schema)])
    assert done.exit_code == 1
    assert isinstance(done.exception, RaysysError)
    assert "FAILED: delay median: 14, bounds: from 0 to 9\n" in done.stdout
    assert "passed: delay max: 29, bounds: from 0 to 40\n" in done.stdout


def test_a_missing_schema_is_named() -> None:
    done = CliRunner().invoke(cli.app, ["data", "validate", "f.csv", "--schema", "none.yaml"])
    assert "none.yaml: no such file. `raysys data infer f.csv` writes" in str(done.exception)
