"""Tables in the object store, and the checks that keep bad rows out of them."""

from raysys.data._balance import class_counts, class_weights, oversample, undersample
from raysys.data._check import Checked, check
from raysys.data._read import read
from raysys.data._sample import importance_sample, reservoir_sample, sample
from raysys.data._split import Splits, split_by_group, split_by_hash, split_stratified
from raysys.data._split_time import split_by_time
from raysys.data._table import BlockMeta, Table, described

__all__ = [
    "BlockMeta",
    "Checked",
    "Splits",
    "Table",
    "check",
    "class_counts",
    "class_weights",
    "described",
    "importance_sample",
    "oversample",
    "read",
    "reservoir_sample",
    "sample",
    "split_by_group",
    "split_by_hash",
    "split_by_time",
    "split_stratified",
    "undersample",
]
