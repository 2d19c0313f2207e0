"""State of a Table: blocks in the object store, or the sources and operations of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.data._blocks import BlockMeta, results, table_task, value_task
from raysys.data._conversions import kind_of
from raysys.data._describe import table_html, table_text
from raysys.data._lazy_plan import LazyOperation, evaluate, planned_schema
from raysys.data._lineage import Lineage, plain
from raysys.data._row_hash import content_of, table_digest
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from ray import ObjectRef


class PlannedBlocks:
    """Blocks or the plan of them, with schema and lineage: what every Table is made of."""

    def __init__(
        self,
        blocks: Sequence[ObjectRef],
        metas: Sequence[BlockMeta],
        lineage: Lineage | None = None,
    ) -> None:
        """A Table of existing blocks.

        Args:
            blocks: References to `pyarrow.Table` values.
            metas: Row count, size and schema of each block.
            lineage: Origin of the rows.
        """
        self._sources: tuple[Any, ...] = tuple(blocks)
        self._operations: tuple[LazyOperation, ...] = ()
        self._metas: tuple[BlockMeta, ...] | None = tuple(metas)
        self._planned_schema: pa.Schema | None = None  # after the operations
        self.lineage = lineage or Lineage("made by hand")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.blocks(), self.metas(), self.lineage)

    def __repr__(self) -> str:
        return table_text(self)

    def _repr_html_(self) -> str:
        return table_html(self)

    @classmethod
    def from_plan(
        cls,
        sources: Sequence[Any],
        schema: pa.Schema,
        operations: Sequence[LazyOperation],
        lineage: Lineage,
    ) -> Self:
        """A lazy Table of blocks or parts of files, and operations that lead to this schema."""
        table = cls(sources, (), lineage)
        table._operations, table._metas, table._planned_schema = tuple(operations), None, schema
        return table

    @classmethod
    def from_blocks(
        cls, pairs: Sequence[Sequence[ObjectRef]], lineage: Lineage | None = None
    ) -> Self:
        """A Table of what tasks return as (block, meta), see `described`; waits for the metas."""
        metas = results([meta for _, meta in pairs])
        table = cls([block for block, _ in pairs], metas, lineage)
        table.lineage.rows = len(table)
        return table

    # --- without work ---

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, unified over all blocks."""
        if self._metas is None:
            return self._planned_schema
        schemas = [meta.schema for meta in self._metas]
        return pa.unify_schemas(schemas, promote_options="permissive")

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def __bool__(self) -> bool:
        raise TypeError(
            "the truth value of a Table is ambiguous: write `table is not None`, or "
            "`len(table) > 0` to count its rows"
        )

    __iter__ = None  # rows come from `iter_batches`

    # --- computing ---

    def materialize(self) -> Self:
        """Run the plan and keep the blocks; returns the Table itself."""
        if self._metas is None:
            task = table_task(self._task_name())
            computed = self.from_blocks(
                [task.remote(evaluate, s, self._operations) for s in self._sources]
            )
            self._sources, self._metas, self._operations = computed._sources, computed._metas, ()
            self.lineage.rows = len(self)
        return self

    def blocks(self) -> tuple[ObjectRef, ...]:
        """References to `pyarrow.Table` values."""
        return self.materialize()._sources

    def metas(self) -> tuple[BlockMeta, ...]:
        """Row count, size and schema of each block."""
        metas = self.materialize()._metas
        assert metas is not None
        return metas

    def __len__(self) -> int:
        if self._metas is None and self.lineage.rows is not None:
            return self.lineage.rows
        return sum(meta.rows for meta in self.metas())

    def nbytes(self) -> int:
        """Bytes of the blocks' buffers."""
        return sum(meta.nbytes for meta in self.metas())

    def fingerprint(self) -> str:
        """A digest of the columns and of the rows in their order, independent of the blocks."""
        if self.lineage.fingerprint is None:
            columns = [f"{field.name}:{kind_of(field.type)}" for field in self.schema]
            contents = self.gather(content_of, name="fingerprint")
            self.lineage.fingerprint = table_digest(columns, contents)
        return self.lineage.fingerprint

    def gather(
        self, function: Callable[..., Any], *args: Any, name: str | None = None
    ) -> list[Any]:
        """Results of `function(block, *args)` for each block: small values, in this process.

        The way to statistics: partial ones in one task a block, merged by the caller.
        """
        task = value_task(name or str(getattr(function, "__name__", "gather")))
        return results(
            [
                task.remote(evaluate_and_call, s, self._operations, function, *args)
                for s in self._sources
            ]
        )

    # --- internals ---

    def _names(self, method: str, columns: str | Sequence[str]) -> list[str]:
        """A list of column names, checked."""
        names = [columns] if isinstance(columns, str) else list(columns)
        if missing := [name for name in names if name not in self.columns]:
            raise DataError(
                f"{method}: no such columns: {missing}; the table has {self.columns[:20]}"
            )
        return names

    def _planned(self, operation: LazyOperation, **parameters: Any) -> Self:
        """The Table after an operation, checked against the columns."""
        schema = planned_schema(self.schema, (operation,))
        inputs = (self.lineage, *(table.lineage for table in operation.tables))
        lineage = Lineage(operation.name, plain(parameters), inputs)
        return self.from_plan(self._sources, schema, (*self._operations, operation), lineage)

    def _task_name(self) -> str:
        """Name of the tasks that run the plan."""
        return "+".join(dict.fromkeys(operation.name for operation in self._operations)) or "read"


def evaluate_and_call(
    source: Any, operations: Sequence[LazyOperation], function: Callable[..., Any], *args: Any
) -> Any:
    """Result of `function(block, *args)` for a block of the plan; runs in a task."""
    return function(evaluate(source, operations), *args)
