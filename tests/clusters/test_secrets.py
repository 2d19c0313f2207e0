"""A secret does not appear in the records, logs and errors of a run."""

import io
import json
import os
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from raysys.errors import StorageError, UnavailableError
from raysys.secrets import Secret, holds_secret, shown
from raysys.storage import Storage
from raysys.tracking import open_run
from raysys.workflow import Job, Run, parse

PLANTED = "hunter2-5e0c1f"


class Config(BaseModel):
    key: Secret = SecretStr("")
    rate: float = 0.5


def use(run: Run, rate: float) -> float:
    """A step that logs metrics and prints."""
    run.log_metrics({"rate": rate})
    print("used")
    return rate


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_is_read_from_the_environment_or_a_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", PLANTED)
    (tmp_path / "key").write_text(PLANTED + "\n")
    source = "env:PLANTED" if kind == "env" else f"file:{tmp_path}/key"
    config = parse(Config, ["--key", source])
    assert config.key.get_secret_value() == PLANTED
    (tmp_path / "config.yaml").write_text(f"key: {source}\n")
    config = parse(Config, ["--config", str(tmp_path / "config.yaml")])
    assert config.key.get_secret_value() == PLANTED
    assert PLANTED not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (PLANTED, "pass env:NAME or file:PATH, not the secret itself"),
        ("env:NOT_THERE", "environment variable NOT_THERE is not set"),
        ("file:/not/there", "cannot read /not/there"),
        ("file:/dev/null", "/dev/null is empty"),
    ],
)
def test_a_secret_on_the_command_line_is_rejected_and_not_repeated(
    value: str, message: str
) -> None:
    errors = io.StringIO()
    with redirect_stderr(errors), pytest.raises(SystemExit):
        parse(Config, ["--key", value])
    assert f"--key: {message}" in errors.getvalue()
    assert PLANTED not in errors.getvalue()


def test_the_records_and_logs_of_a_run_do_not_contain_the_secret(
    ray_cluster: None,
    tmp_path: Path,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import ray

    monkeypatch.setenv("PLANTED", PLANTED)
    storage = Storage(tmp_path / "root")
    job = Job("secretive", parse(Config, ["--key", "env:PLANTED"]), storage)
    job.step(use, 0.5)
    job.run()
    tracked = open_run(
        storage, "secretive", "by hand", settings=Config(key=SecretStr(PLANTED)).model_dump()
    )
    tracked.end("FINISHED", {})

    record = json.loads(Path(storage.uri(f"runs/{job.run_id}/run.json")).read_text())
    assert record["config"] == {"key": "**********", "rate": 0.5}
    database = Path(mlflow_database.removeprefix("sqlite:///"))
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    files = [file for folder in (tmp_path, database.parent, logs)
             for file in folder.rglob("*") if file.is_file()]  # fmt: skip
    assert len(files) > 10
    assert [str(file) for file in files if PLANTED.encode() in file.read_bytes()] == []
    out, err = capfd.readouterr()
    assert "used" in out
    assert PLANTED not in out + err


def test_mlflow_errors_do_not_contain_the_servers_password(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ray:{PLANTED}@127.0.0.1:9")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # restored after the test
    with pytest.raises(UnavailableError) as refused:
        open_run(storage, "secretive", "one", settings={})
    messages, error = "", refused.value
    while error is not None:
        messages += str(error)
        error = error.__cause__ or error.__context__
    assert "127.0.0.1:9" in messages
    assert PLANTED not in messages
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == PLANTED  # read by MLflow's client


def test_a_password_in_the_storage_root_is_rejected() -> None:
    with pytest.raises(StorageError) as refused:
        Storage(f"s3://AKIA:{PLANTED}@bucket/raysys?region=eu-central-1")
    assert "s3://AKIA:***@bucket" in str(refused.value)
    assert PLANTED not in str(refused.value)
    assert Storage("s3://bucket/a@b").root == "s3://bucket/a@b"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://ray:pw@host/mlflow", "postgresql://ray:***@host/mlflow"),
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("two: http://a:b@c/ and s3://d:e@f", "two: http://a:***@c/ and s3://d:***@f"),
        ("https://host/x?token=abc&user=ray", "https://host/x?token=***&user=ray"),
        ("https://host/x?X-Amz-Signature=abc", "https://host/x?X-Amz-Signature=***"),
        ("https://a.blob/x?sv=1&sig=abc", "https://a.blob/x?sv=1&sig=***"),
        ("abfs://box@account/path", "abfs://box@account/path"),
        ("http://host:8265/path", "http://host:8265/path"),
        ("at 12:30, mail a@b", "at 12:30, mail a@b"),
        ("http://user@host:80/a:b@c", "http://user@host:80/a:b@c"),
        ("http://u:p@w@host/x", "http://u:***@host/x"),
    ],
)
def test_secrets_in_text_are_masked(text: str, clean: str) -> None:
    assert shown(text) == clean


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("HF_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("RAY_AUTH_TOKEN", True),
        ("RAY_AUTH_TOKEN_PATH", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("RAYSYS_STORAGE", False),
    ],
)
def test_secret_variables_are_recognised(name: str, secret: bool) -> None:
    assert holds_secret(name, "x") is secret
