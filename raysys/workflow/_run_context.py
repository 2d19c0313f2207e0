"""The `Run` that a step is called with: its folders and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.arguments import checked
from raysys.console import say, text_table
from raysys.models import ModelFiles, ModelStore, StoredModel
from raysys.storage import Storage
from raysys.tracking import plots

if TYPE_CHECKING:
    from raysys.data import Table, ValidationResult
    from raysys.tracking import TrackedRun


@dataclass
class Notes:
    """Records of a step, stored with its result, so that a run that skips the step has them too.

    Attributes:
        metrics: Results by name.
        facts: Fingerprints, counts by name, URLs and the like.
        tags: Text by which the run can be searched.
        curves: Series of measurements by name.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)

    def add(self, notes: Notes) -> None:
        """Add the records of another step."""
        tables = {**self.facts.get("tables", {}), **notes.facts.get("tables", {})}
        self.metrics |= notes.metrics
        self.facts |= notes.facts | ({"tables": tables} if tables else {})
        self.tags |= notes.tags
        self.curves |= notes.curves


class Run:
    """One run of a job, as a step sees it.

    Attributes:
        id: Name of the run.
        folder: `runs/<id>` under it: plots, rows in quarantine, the record.
        work: The step's own folder, the same in every run in which the step has the same code,
            parameters and inputs: training and searches that have it as their storage resume
            after a crash. Their MLflow runs are nested in this run.
    """

    def __init__(
        self, *, record: Mapping[str, Any], storage: Storage, work: Storage, tracked: TrackedRun
    ) -> None:
        """Called by `Job`; `record` is the run's record when the step starts."""
        self.id, self.job = str(record["id"]), str(record["job"])
        self.storage, self.work = storage, work
        self.folder = Storage(storage.uri(f"runs/{self.id}"))
        self.notes = Notes()
        self._record, self._tracked = record, tracked

    @checked
    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record named results."""
        self.notes.metrics |= metrics

    def log_facts(self, **facts: Any) -> None:
        """Record fingerprints, counts by name, URLs and the like."""
        self.notes.facts |= facts
        self.notes.tags |= {k: v for k, v in facts.items() if isinstance(v, str | int | float)}

    @checked
    def log_tables(self, **tables: Table) -> None:
        """Record rows, fingerprint and lineage of Tables; `raysys lineage` prints the latter."""
        facts = self.notes.facts.setdefault("tables", {})
        for name, table in tables.items():
            # In this order: rows and fingerprint are then written with the lineage.
            content = {"rows": len(table), "fingerprint": table.fingerprint()}
            facts[name] = {**content, "lineage": table.lineage.write(self.storage)}
            self.notes.tags |= {f"data.{name}.{key}": v for key, v in facts[name].items()}
            say(f"{name}: {len(table)} rows, lineage {facts[name]['lineage']}")

    def log_quarantine(self, result: ValidationResult, table: str | None = None) -> None:
        """Store the rows in quarantine, and print the number of rows per reason.

        A run that validates several Tables gives the name of each.
        """
        of, after = (f"{table} ", f"_{table}") if table else ("", "")
        result.quarantine.write_parquet(self.folder, f"quarantine{after}")
        self.log_facts(**{
            f"quarantined{after}": len(result.quarantine),
            f"quarantine_reasons{after}": result.reasons,
        })  # fmt: skip
        say(f"{of}quarantine: {len(result.quarantine)} of {result.rows} rows")
        for reason, count in result.reasons.items():
            say(f"  {count} x {reason}")

    @checked
    def log_curve(self, name: str, lines: Mapping[str, Sequence[float]]) -> None:
        """Record measurements over epochs, and plot them."""
        self.notes.curves |= {line: [float(v) for v in values] for line, values in lines.items()}
        self.folder.write_bytes(f"{name}.png", plots.curves(name, lines))

    def log_search(self, name: str, score: float, trials: Sequence[Mapping[str, Any]]) -> None:
        """Record the trials and the best score of a search."""
        self.folder.write_json(f"search-{name}.json", list(trials))
        self.log_metrics({f"{name}_validation_score": score})
        say(f"search {name}: best of {len(trials)} trials {score:.4f}")

    @checked
    def log_comparison(self, name: str, results: Mapping[str, Mapping[str, float]]) -> None:
        """Record measures by model, plot them, and print them as a table."""
        for model, values in results.items():
            self.log_metrics({f"{model}: {key}": value for key, value in values.items()})
        self.folder.write_json(f"{name}.json", results)
        self.folder.write_bytes(f"{name}.png", plots.bars(name, results))
        measures = list(next(iter(results.values())))
        rows = [(model, *(f"{values[measure]:.4f}" for measure in measures))
                for model, values in results.items()]  # fmt: skip
        say("\n" + text_table([name, *(f">{measure}" for measure in measures)], rows))

    @checked
    def store_model(
        self, name: str, model: Any, *, signature: Mapping[str, Any] | None = None, **options: Any
    ) -> StoredModel:
        """Store a model with this run's record as its manifest; `promote` makes it the champion.

        Args:
            name: Registered name.
            model: A model as for `models.save`; or with a signature, a function that writes the
                model's files into a folder, called in a task, so that tables reach the files
                without passing through the driver.
            signature: Signature of the inputs and outputs of what such a function writes.
            options: `featurizer`, `inputs`, `classes` or `method` of `models.save`.
        """
        write = model
        if signature is None:
            files = ModelFiles.of(model, **options)
            write, signature = files.write, files.signature
        notes = Notes(**self._record["notes"])
        notes.add(self.notes)
        record = {key: value for key, value in self._record.items() if key != "notes"}
        manifest = {**record, **asdict(notes), "signature": signature}
        return ModelStore(self.storage).register(
            name, write, manifest=manifest, run=self._tracked, path=f"models/{name}/{self.id}",
            in_task=write is model,
        )  # fmt: skip
