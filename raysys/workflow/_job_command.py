"""A job's settings, from flags and a YAML file."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from raysys.errors import RaysysError
from raysys.workflow._job import Job

Config = TypeVar("Config", bound=BaseModel)


def parse(config: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Settings from the command line: flags first, then the file of `--config`, then defaults.

    Every field of the model is a flag, `max_depth` as `--max-depth`. A wrong value ends the
    program with the flag named, and exit status 2.

    Args:
        config: A pydantic model of which every field has a default.
        argv: The arguments; the process's own by default.
    """
    program = config.__module__.rpartition(".")[2]
    file_flag = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False)
    file_flag.add_argument("--config")
    file, arguments = file_flag.parse_known_args(argv)
    from_file = {} if file.config is None else _read_yaml(file.config)

    class Settings(config, BaseSettings):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(
            cli_parse_args=arguments,
            cli_prog_name=program,
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_exit_on_error=True,
            extra="forbid",
        )

        @classmethod
        def settings_customise_sources(  # type: ignore[override]
            cls, _: Any, init_settings: Any, **__: Any
        ) -> tuple[Any, ...]:
            return (init_settings,)  # the environment stays out of it

    Settings.__doc__ = config.__doc__
    try:
        return config(**Settings(**from_file).model_dump())
    except ValidationError as error:
        for problem in error.errors():
            flag = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
            # What was given for a secret may be the secret.
            given = "" if problem["type"] == "secret" else f"; given: {problem['input']!r}"
            print(f"{flag}: {problem['msg']}{given}", file=sys.stderr)
        raise SystemExit(2) from None


def run_job(make: Callable[[Config], Job], config: type[Config]) -> None:
    """Run a job from the command line; an error of ours is one line and exit status 1.

    Beside the settings' flags there are `--from STEP`, which runs that step and all that follow
    from it though nothing has changed, and `--steps`, which only draws them.

    Args:
        make: Puts the job together from its settings.
        config: The settings, see `parse`.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--from", dest="start")
    flags.add_argument("--steps", choices=("text", "mermaid"), nargs="?", const="text")
    given, arguments = flags.parse_known_args()
    settings = parse(config, arguments)
    try:
        job = make(settings)
        if given.steps:
            print(job.diagram(given.steps))
        else:
            job.run(given.start)
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        values = error
    if not isinstance(values, dict):
        print(f"--config: give a YAML file of settings; given: {path} ({values})", file=sys.stderr)
        raise SystemExit(2)
    return values
