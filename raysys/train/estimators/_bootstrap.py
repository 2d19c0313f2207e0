"""Bootstrap samples of a Table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.data import Table

_ROW = "__row__"
_MOST = 12  # a row that is drawn more often has a chance of 6e-11
_FACTORIALS = np.cumprod([1.0, *range(1, _MOST + 1)])
_CHANCES = np.cumsum(np.exp(-1.0) / _FACTORIALS)


def bootstrap(table: Table, seed: int) -> Table:
    """Rows drawn with replacement, for a member of a bag; they stay in their order.

    (Breiman, "Bagging predictors", 1996.) Each row comes as often as an independent Poisson
    variable of mean 1 says, which needs no look at other rows (Oza & Russell, "Online bagging
    and boosting", 2001, section 2): so there are about as many rows as before. How they lie in
    blocks makes no difference.
    """
    return table.with_row_number(_ROW).map_blocks(_draw, seed, name="bootstrap")


def _draw(block: pa.Table, seed: int) -> pa.Table:
    rows = block.drop_columns([_ROW])
    if not len(rows):
        return rows
    # One step of the generator a row: a block goes on where the one before it ended.
    generator = np.random.PCG64(seed).advance(block[_ROW][0].as_py())
    counts = np.searchsorted(_CHANCES, np.random.Generator(generator).random(len(rows)))
    return rows.take(np.repeat(np.arange(len(rows)), counts))
