"""Flipped bits in the files of an index: each is seen when they are loaded."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.serving import ours
from raysys.errors import RaysysError
from raysys.index import VectorIndex, vector_table
from raysys.index._persistence import IndexFiles
from raysys.storage import Storage

if TYPE_CHECKING:
    from benchmarks._figures import Report

_NAME, _DIM, _ROWS = "damaged", 16, 2_000
_FLIPS = 17  # of each file


def measure(report: Report) -> None:
    """Flip bits of each file of a stored index, one at a time, and open the index again."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(_ROWS, _DIM))
    loaded = flips = 0
    with tempfile.TemporaryDirectory() as folder, ours.ray_cluster():
        whole, damaged = Path(folder, "whole"), Path(folder, "damaged")
        index = VectorIndex.build(
            _NAME, vector_table(np.arange(_ROWS), vectors), Storage(whole), shards=1
        )
        index.upsert(vector_table(np.arange(10), vectors[:10]))  # in the log
        index.close()
        files = [
            path for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size
        ]
        for path in files:
            for bit in rng.integers(0, 8 * path.stat().st_size, _FLIPS).tolist():
                shutil.rmtree(damaged, ignore_errors=True)
                shutil.copytree(whole, damaged)
                copy = damaged / path.relative_to(whole)
                content = bytearray(copy.read_bytes())
                content[bit // 8] ^= 1 << bit % 8
                copy.write_bytes(content)
                flips += 1
                loaded += _loads(Storage(damaged))
    report.add("flipped bits in the files of an index", flips, "bits")
    report.add("that were loaded without a word", loaded, "bits", below=1)


def _loads(storage: Storage) -> bool:
    """Whether a process of the index would start on these files."""
    files = IndexFiles(storage, f"indexes/{_NAME}")
    try:
        manifest = files.manifest()
        if manifest is None:
            return False
        shard = files.read_shard(manifest, 0)
        for version, batch in files.changes(manifest.version):
            shard.apply(version, batch)
    except RaysysError:
        return False
    return True
