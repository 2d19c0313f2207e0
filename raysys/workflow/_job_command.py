"""The command line of a job: its settings from flags and a YAML file, and its run."""

import argparse
import functools
import importlib
import inspect
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as MalformedFlag

from raysys.arguments import checked
from raysys.console import say
from raysys.errors import RaysysError, SettingsError, unknown_names
from raysys.workflow._job import Job

Config = TypeVar("Config", bound=BaseModel)
_RUN_FLAGS = """
flags of every job:
  --config FILE         YAML file of settings; flags take precedence
  --from STEP           run a step and its dependents even if unchanged
  --steps [text|mermaid]
                        draw the steps, and do not run them
  --verbose             print each step's traffic, if the job measures it
"""


@checked
def parse(config: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Settings from the command line: flags first, then the file of `--config`, then defaults.

    Every field of the model is a flag, `max_depth` as `--max-depth`. An invalid value
    ends the program with the flag's name and exit status 2.

    Args:
        config: Pydantic model in which every field has a default.
        argv: Arguments; those of the process by default.
    """
    program = config.__module__.rpartition(".")[2]
    file_flag = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False)
    file_flag.add_argument("--config")
    file, arguments = file_flag.parse_known_args(argv)
    from_file = {} if file.config is None else _read_yaml(file.config)
    _check_names(config, arguments, from_file)

    class JobSettings(config, BaseSettings):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(extra="forbid")

        @classmethod
        def settings_customise_sources(  # type: ignore[override]
            cls, settings_cls: type[BaseSettings], init_settings: Any, **_: Any
        ) -> tuple[Any, ...]:
            flags = CliSettingsSource[Any](
                settings_cls, cli_parse_args=arguments, cli_prog_name=program, cli_kebab_case=True,
                cli_implicit_flags=True, cli_exit_on_error=True, case_sensitive=False,
                add_argument_method=_add_argument,
            )  # fmt: skip
            return flags, init_settings  # the environment is ignored

    JobSettings.__doc__ = f"{inspect.cleandoc(config.__doc__ or '')}\n{_RUN_FLAGS}".strip()
    try:
        settings = JobSettings(**from_file)
        return config(**{name: getattr(settings, name) for name in config.model_fields})
    except ValidationError as error:
        raise _refusal(*map(_message, error.errors())) from None
    except SettingsError as error:  # of a config that is a `raysys.settings.Settings`
        raise _refusal(str(error).replace(JobSettings.__name__, config.__name__)) from None
    except MalformedFlag as error:
        name = str(error).partition('"')[2].partition('"')[0].replace("_", "-")
        raise _refusal(
            f"--{name}: give JSON ({error.__cause__}), or a file with --config"
        ) from None


def _add_argument(parser: Any, *flags: str, **options: Any) -> Any:
    """Add a flag; that of a field of one letter has two dashes like all others."""
    letters = [f"-{flag}" for flag in flags if len(flag) == 2 and flag != "-h"]
    return argparse.ArgumentParser.add_argument(parser, *letters, *flags, **options)


def _check_names(
    config: type[BaseModel], arguments: Sequence[str], from_file: Mapping[str, Any]
) -> None:
    """End the program with the nearest names if a flag or a key of the file is not a setting."""
    names = [name.replace("_", "-") for name in config.model_fields]
    flags = [word[2:].partition("=")[0].partition(".")[0] for word in arguments
             if word.startswith("--") and len(word) > 2]  # fmt: skip
    known = {*names, *(f"no-{name}" for name in names), "help"}
    if wrong := [f"--{flag}" for flag in flags if flag not in known]:
        valid = [f"--{name}" for name in names]
        raise _refusal(f"unknown flags: {unknown_names(wrong, valid)}; flags: {', '.join(valid)}")
    if wrong := [key for key in from_file if key not in config.model_fields]:
        fields = list(config.model_fields)
        unknown = unknown_names(wrong, fields)
        raise _refusal(f"--config: unknown settings: {unknown}; settings: {', '.join(fields)}")


def _message(problem: Any) -> str:
    flag = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
    text = problem["msg"].removeprefix("Value error, ")
    # A malformed secret may be the secret itself; the text of nested settings has the value.
    is_said = problem["type"] == "secret" or "; given: " in text
    return f"{flag}: {text}" if is_said else f"{flag}: {text}; given: {problem['input']!r}"


def _refusal(*lines: str) -> SystemExit:
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return SystemExit(2)


@checked
def run_job(make_job: Callable[[Config], Job], config: type[Config]) -> None:
    """Run a job from the command line; an error of raysys is one line and exit status 1.

    Other flags are `--from STEP`, which runs a step and its dependents even if unchanged,
    `--steps`, which only draws the steps, and `--verbose`.

    Args:
        make_job: Builds the job from its settings.
        config: The settings model, see `parse`.

    Example:
        if __name__ == "__main__":
            run_job(make_job, Config)
    """
    try:
        make_job, config = _importable(make_job), _importable(config)
    except RaysysError as error:
        raise SystemExit(f"error: {error}") from None
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--from", dest="start")
    flags.add_argument("--steps", choices=("text", "mermaid"), nargs="?", const="text")
    flags.add_argument("--verbose", action="store_true")
    options, arguments = flags.parse_known_args()
    settings = parse(config, arguments)
    job = None
    try:
        job = make_job(settings)
        if options.steps:
            say(job.diagram(options.steps))
        else:
            job.run(options.start, verbose=options.verbose)
    except RaysysError as error:
        if job and any(progress.error for progress in job.progress.values()):
            raise SystemExit(1) from None  # the run has printed it
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:  # Ctrl-C; the run has said that it was killed
        raise SystemExit(128 + signal.SIGINT) from None


def _importable(defined: Any) -> Any:
    """A function or class of `__main__`, from the same script imported under its own name.

    Other processes cannot import this one's `__main__`, and step keys contain the module's name.
    """
    if defined.__module__ != "__main__":
        return defined
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is None and file is None:
        return defined  # an interactive session
    name = spec.name if spec else Path(str(file)).stem
    if spec is None and "." in name:
        raise RaysysError(
            f"{file}: workers import a job as a module, whose name has no dots: rename the file, "
            f"for example to {name.replace('.', '_')}.py"
        )
    module = importlib.import_module(name)
    if file and Path(module.__file__ or "").resolve() != Path(file).resolve():
        raise RaysysError(
            f"{file}: `import {name}` finds {module.__file__} instead. Rename the script, so that "
            "workers can import it"
        )
    return functools.reduce(getattr, defined.__qualname__.split("."), module)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        values = error
    if not isinstance(values, dict):
        raise _refusal(f"--config: give a YAML file of settings; given: {path} ({values})")
    return values
