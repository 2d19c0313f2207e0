"""Uploaded files of a folder, by Ray's packaging code with the excludes of raysys."""

import zipfile
from pathlib import Path

import pytest

from raysys.cluster import runtime_env
from raysys.errors import RaysysError

_CODE = ["jobs/train.py", "jobs/keys.py", "lib/secrets.py", "conf/settings.yaml", "data/env.csv"]
_EXCLUDED = [
    ".git/config", ".venv/bin/python", "venv/lib/x.py", "my env/pyvenv.cfg", "my env/lib/x.py",
    "jobs/__pycache__/train.cpython-311.pyc", ".mypy_cache/x", "node_modules/a/b.js",
    ".env", ".env.production", "prod.env", "tls/server.pem", "tls/server.key", "id_rsa",
    ".aws/credentials", ".ray/auth_token", "conf/secrets.yaml", "keys/gcp-service-account.json",
    "mlruns/0/meta.yaml", "mlflow.db", "mlflow.db-wal", ".raysys/runs/r/run.json",
    "artefacts/runs/r/run.json", "ignored/by_git.txt",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    for name in [*_CODE, *_EXCLUDED]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("planted")
    (folder / ".gitignore").write_text("ignored/\n!.env\n")
    monkeypatch.setenv("RAYSYS_STORAGE", str(folder / "artefacts"))
    # Ray's defaults exclude some of them too; the test must not depend on that.
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    return folder


def _packed(folder: Path) -> set[str]:
    """Names in the archive that Ray would upload."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    archive = folder.parent / "package.zip"

    def upload(working_dir: str, excludes: list[str], is_file: bool = False) -> None:
        create_package(working_dir, archive, include_gitignore=True, excludes=excludes)

    environment = runtime_env(folder)
    upload_working_dir_if_needed(environment, include_gitignore=True, upload_fn=upload)
    return {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}


def test_only_code_is_uploaded(folder: Path) -> None:
    assert _packed(folder) == {*_CODE, ".gitignore"}


def test_this_repository_is_uploaded_without_its_local_files() -> None:
    root = Path(__file__).parents[2]
    from ray._private.runtime_env.packaging import _get_excludes

    skipped = _get_excludes(root, runtime_env(root)["excludes"])
    assert skipped(root / ".git")
    assert skipped(root / ".venv")
    code = [p for top in ("raysys", "jobs", "clusters") for p in (root / top).rglob("*.[pym]*")]
    assert code
    expected = [path for path in code if path.suffix in (".py", ".yaml", ".md")]
    assert [path for path in expected if skipped(path)] == []


def test_a_missing_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RaysysError, match="no such folder"):
        runtime_env(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", "https://ray:hunter2@mlflow.example"),
        ("RAYSYS_STORAGE", "s3://AKIA:hunter2@bucket/raysys"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("RAY_AUTH_TOKEN", "hunter2"),
        ("DB_PASSWORD", "hunter2"),
    ],
)
def test_a_secret_in_a_jobs_environment_is_rejected(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(RaysysError) as refused:
        runtime_env(tmp_path, {name: value})
    assert name in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_other_variables_are_passed(tmp_path: Path) -> None:
    env = {
        "RAYSYS_STORAGE": "s3://bucket/raysys",
        "RAYSYS_GIT_COMMIT": "abc",
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_AUTH_TOKEN_PATH": "/etc/ray/token",
    }
    assert runtime_env(tmp_path, env)["env_vars"] == env


@pytest.mark.parametrize("name", ["queue.py", "types.py", "typing/__init__.py", "numpy.py"])
def test_a_file_that_hides_a_module_of_ray_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    top = name.partition("/")[0]
    with pytest.raises(RaysysError, match=f"{name} hides the module .*rename '{top}'.*'my_{top}'"):
        runtime_env(tmp_path)
    (tmp_path / ".rayignore").write_text(f"/{top}\n")
    runtime_env(tmp_path)


def test_other_files_with_names_of_modules_are_sent(tmp_path: Path) -> None:
    for name in ["jobs/queue.py", "queue/data.txt", "types.csv", "test.py", "tests/__init__.py",
                 "examples/__init__.py", "raysys/__init__.py", "pytest.py"]:  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    runtime_env(tmp_path)


def test_a_folder_that_is_too_large_names_its_largest_files(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("print()")
    for name, mib in {"data/big.csv": 600, "data/small.csv": 2, "model.bin": 100}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(mib << 20)  # sparse
    with pytest.raises(RaysysError) as refused:
        runtime_env(tmp_path)
    message = str(refused.value)
    assert "has 702 MiB in 4 files to send with the job, and a cluster takes 512 MiB" in message
    assert "largest files: data/big.csv (600 MiB), model.bin (100 MiB), data/small.csv" in message
    assert "largest entries: data/ (602 MiB), model.bin (100 MiB)" in message
    assert (
        f"{tmp_path}/.rayignore what the job does not import, such as /data/, /model.bin; "
        in message
    )
    (tmp_path / ".rayignore").write_text("/data/\n")
    runtime_env(tmp_path)
