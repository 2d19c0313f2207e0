"""Bootstrap samples of a Table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raysys.arguments import checked

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.data import Table

_ROW = "__row__"
_MAX_DRAWS = 12  # more draws of a row have a probability of 6e-11
_FACTORIALS = np.cumprod([1.0, *range(1, _MAX_DRAWS + 1)])
_CUMULATIVE = np.cumsum(np.exp(-1.0) / _FACTORIALS)


@checked
def bootstrap(table: Table, seed: int) -> Table:
    """A sample of rows with replacement, in their order, to train a member of a bag.

    (Breiman, "Bagging predictors", 1996.) The number of copies of each row is an independent
    Poisson variable of mean 1 (Oza & Russell, "Online bagging and boosting", 2001, section 2): the
    sample has about as many rows as the Table, and does not depend on its blocks.
    """
    return table.with_row_number(_ROW).map_blocks(_draw, seed, name="bootstrap")


def _draw(block: pa.Table, seed: int) -> pa.Table:
    rows = block.drop_columns([_ROW])
    if not len(rows):
        return rows
    # One step of the generator a row: a block continues where the previous one ended.
    generator = np.random.PCG64(seed).advance(block[_ROW][0].as_py())
    counts = np.searchsorted(_CUMULATIVE, np.random.Generator(generator).random(len(rows)))
    return rows.take(np.repeat(np.arange(len(rows)), counts))
