"""Tables in the object store, and the checks that keep bad rows out of them."""

from raysys.data._check import Checked, check
from raysys.data._read import read
from raysys.data._table import BlockMeta, Table, described

__all__ = ["BlockMeta", "Checked", "Table", "check", "described", "read"]
