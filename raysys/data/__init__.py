"""Tables in the object store, and the checks that keep bad rows out of them."""

from raysys.data._blocks import BlockMeta, described
from raysys.data._lineage import Lineage, lineage_text, read_lineage
from raysys.data._order_statistics import quantiles
from raysys.data._row_hash import block_digest, hash_rows, hash_text
from raysys.data._table import Table
from raysys.data.leakage._check_leaks import check_leaks
from raysys.data.leakage._report import LeakFinding, LeakLimits, LeakReport
from raysys.data.readers._read import read
from raysys.data.sampling._class_balance import class_counts, class_weights, oversample, undersample
from raysys.data.sampling._sample import importance_sample, reservoir_sample, sample
from raysys.data.sampling._split import (
    Splits,
    split_by_group,
    split_by_hash,
    split_by_time,
    split_stratified,
)
from raysys.data.validation._infer_schema import infer_schema
from raysys.data.validation._schema import Column, DistributionBounds, RowBounds, Schema
from raysys.data.validation._validate import TableCheck, ValidationError, ValidationResult, validate

__all__ = [
    "BlockMeta",
    "Column",
    "DistributionBounds",
    "LeakFinding",
    "LeakLimits",
    "LeakReport",
    "Lineage",
    "RowBounds",
    "Schema",
    "Splits",
    "Table",
    "TableCheck",
    "ValidationError",
    "ValidationResult",
    "block_digest",
    "check_leaks",
    "class_counts",
    "class_weights",
    "described",
    "hash_rows",
    "hash_text",
    "importance_sample",
    "infer_schema",
    "lineage_text",
    "oversample",
    "quantiles",
    "read",
    "read_lineage",
    "reservoir_sample",
    "sample",
    "split_by_group",
    "split_by_hash",
    "split_by_time",
    "split_stratified",
    "undersample",
    "validate",
]
