"""Reading files into a Modin frame, values as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.data._table import use_ray_engine
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection


def read(path: str, columns: Collection[str]) -> Any:
    """Read a CSV or Parquet file, in Modin's tasks.

    A CSV's values stay text: what they must be, and what becomes of those that are not, is
    the schema's matter.

    Args:
        path: A file that the nodes of the cluster share, or a URI that Modin opens.
        columns: Columns that must be there; others are dropped.

    Returns:
        A Modin frame.

    Raises:
        DataError: No such file, neither CSV nor Parquet, without these columns or without rows.
    """
    import modin.pandas as pd

    use_ray_engine()
    if "://" not in path and not Path(path).is_file():
        raise DataError(f"{path}: no such file. Give the path of a CSV or Parquet file")
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: files are read as .csv or .parquet, not {suffix or 'nothing'!r}")
    try:
        frame = (
            pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
            if suffix == ".csv"
            else pd.read_parquet(path)
        )
    except Exception as error:  # the parsers' errors have no common base
        raise DataError(f"{path}: cannot be read as {suffix[1:]}: {error}") from error
    if missing := [name for name in columns if name not in frame.columns]:
        raise DataError(
            f"{path}: lacks the columns {missing}; it has {list(frame.columns)[:20]}. Rename its "
            "columns or give another file"
        )
    if len(frame) == 0:
        raise DataError(f"{path}: has columns but no rows. Give a file with at least one row")
    return frame[list(columns)]
