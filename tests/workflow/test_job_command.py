import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from jobs import recommender
from raysys.data import Schema
from raysys.features import Featurizer, Numeric, OneHot
from raysys.identity import digest
from raysys.settings import Settings
from raysys.workflow import Job, parse


class Config(BaseModel):
    max_depth: int = Field(3, ge=1)
    rate: float = 0.1
    strategy: Literal["ddp", "zero1"] = "ddp"
    serve: bool = True


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text("max_depth: 5\nrate: 0.5\n")
    return str(path)


def _refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(Config, argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_defaults_stand_without_flags_and_file() -> None:
    assert parse(Config, []) == Config()


@pytest.mark.parametrize("flag", ["--max-depth 7", "--max-depth=7"])
@pytest.mark.parametrize("order", [1, -1])
def test_flags_beat_the_file_which_beats_defaults(file: str, flag: str, order: int) -> None:
    argv = [word for part in (f"--config {file}", flag)[::order] for word in part.split()]
    assert parse(Config, argv) == Config(max_depth=7, rate=0.5)


def test_the_file_is_named_with_an_equals_sign_too(file: str) -> None:
    assert parse(Config, [f"--config={file}"]) == Config(max_depth=5, rate=0.5)


def test_a_switch_is_turned_off_with_no() -> None:
    assert parse(Config, ["--no-serve"]) == Config(serve=False)


def test_the_environment_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.9")
    assert parse(Config, []) == Config()


@pytest.mark.parametrize(
    ("argv", "flag", "given"),
    [
        (["--max-depth", "deep"], "--max-depth", "'deep'"),
        (["--max-depth", "0"], "--max-depth", "'0'"),
        (["--strategy", "zero9"], "--strategy", "'zero9'"),
    ],
)
def test_a_wrong_value_is_refused_by_flag(
    argv: list[str], flag: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = _refusal(argv, capsys)
    assert refusal.startswith(f"{flag}: ")
    assert refusal.rstrip().endswith(f"given: {given}")


@pytest.mark.parametrize("flag", ["--depth", "--max", "--max_depth"])
def test_an_unknown_flag_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = _refusal([flag, "3"], capsys)
    assert refusal.startswith(f"unknown flags: '{flag}'")
    assert "flags: --max-depth, --rate, --strategy, --serve" in refusal
    assert "did you mean '--max-depth'?" in refusal


SCHEMA = Schema.from_yaml("""
name: flights
columns:
  carrier: {type: string, allowed: [AA, UA]}
  day: {type: date, min: 2020-01-01}
  at: {type: 'timestamp[us, UTC]', nullable: true, min: '2020-01-01T00:30:00Z'}
unique: [[carrier, day]]
""")


class Defined(BaseModel):
    """A job whose settings are definitions."""

    rows: Schema = SCHEMA
    other_rows: Schema | None = None
    features: Featurizer = Featurizer([Numeric(["x"], impute=0.5), OneHot(["c"])])
    part: Numeric | OneHot = OneHot(["c"], max_categories=3)


def test_schemas_and_featurizers_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"other_rows:\n  {SCHEMA.to_yaml().replace(chr(10), chr(10) + '  ')}\n"
        "features: {transforms: [{kind: onehot, columns: [z]}]}\n"
        "part: {columns: [y], log: true}\n"
    )
    assert parse(Defined, []) == Defined()
    settings = parse(Defined, ["--config", str(path), "--part.impute", "median"])
    assert settings.other_rows == SCHEMA
    assert settings.features == Featurizer([OneHot(["z"])])
    assert settings.part == Numeric(["y"], log=True, impute="median")
    flag = parse(Defined, ["--features", '{"transforms": [{"kind": "onehot", "columns": ["z"]}]}'])
    assert flag.features == settings.features
    for each in (Defined(), settings):
        recorded = Job("defined", each).record("RUNNING")["config"]
        assert Defined.model_validate(recorded) == each
        assert digest(Defined.model_validate(recorded)) == digest(each)
    narrower = SCHEMA.model_copy(update={"unique": []})
    keys = {digest(part) for part in (SCHEMA, narrower, settings.part, Numeric(["y"], log=True))}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rows", '{"name": "x", "columns": {"a": {"type": "int65"}}}'],
         "--rows-columns-a: unknown type 'int65'"),
        (["--features", '{"transforms": [{"kind": "onehot", "column": ["z"]}]}'],
         "--features: Featurizer: transforms.0.onehot: OneHot: unknown settings: 'column' "
         "(did you mean 'columns'?)"),
        (["--part", '{"columns": [], "kind": "onehot"}'], "OneHot: columns: Tuple should have"),
        (["--features", "c"],
         "--features: give JSON (Expecting value: line 1 column 1 (char 0)), or"),
    ],
)  # fmt: skip
def test_a_wrong_definition_is_refused_by_flag(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(Defined, argv)
    assert said in capsys.readouterr().err


class Own(Settings):
    n: int = 3


def test_settings_of_raysys_are_refused_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Own, ["--n", "4"]) == Own(n=4)
    with pytest.raises(SystemExit):
        parse(Own, ["--n", "x"])
    assert capsys.readouterr().err.startswith("Own: n: Input should be a valid integer")


class Short(BaseModel):
    """A job of one letter."""

    n: int = 3


def test_a_setting_of_one_letter_has_two_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Short, ["--n", "5"]) == parse(Short, ["--n=5"]) == Short(n=5)
    with pytest.raises(SystemExit):
        parse(Short, ["--help"])
    shown = capsys.readouterr().out
    for flag in ("--n int", "--config FILE", "--from STEP", "--steps", "A job of one letter."):
        assert flag in shown


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("depth: 3", "--config: unknown settings: 'depth'"),
        ("max_dept: 3", "--config: unknown settings: 'max_dept' (did you mean 'max_depth'?)"),
        ("max_depth: deep", "--max-depth: "),
        ("- 3", "--config: "),
        ("a: b: c", "--config: "),
        ("", "--config: "),
    ],
    ids=["unknown key", "misspelt key", "wrong value", "a list", "no YAML", "empty"],
)
def test_a_wrong_file_is_refused(
    yaml: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml)
    assert _refusal(["--config", str(path)], capsys).startswith(said)


@pytest.mark.parametrize("argv", [["--config", "/no/such.yaml"], ["--config"]])
def test_a_missing_file_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in _refusal(argv, capsys)


def test_the_flags_of_the_recommender_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(recommender.Config, ["--help"])
    flags = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert flags == {
        "--compare",
        "--config",
        "--epochs",
        "--from",
        "--help",
        "--host",
        "--no-compare",
        "--no-serve",
        "--port",
        "--ranker-trials",
        "--ratings",
        "--retrieval-trials",
        "--seed",
        "--serve",
        "--shards",
        "--steps",
        "--storage",
        "--strategy",
        "--verbose",
        "--workers",
    }


def test_a_script_whose_name_has_dots_is_refused_with_a_name_for_it(tmp_path: Path) -> None:
    script = tmp_path / "train.v2.py"
    script.write_text(
        "from pydantic import BaseModel\nfrom raysys import workflow\n"
        "class Config(BaseModel): pass\ndef make_job(config): pass\n"
        "workflow.run_job(make_job, Config)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*train\.v2\.py: .*for example to train_v2\.py\n", done.stderr)
