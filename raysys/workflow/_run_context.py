"""What a step is given: where it leaves things, and what it records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.console import say
from raysys.models import ModelStore, StoredModel
from raysys.storage import Storage
from raysys.tracking import plots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from raysys.data import Checked, Table
    from raysys.tracking import TrackedRun


@dataclass
class Notes:
    """What a step has recorded; kept with its result, so that a run that skips it has it too.

    Attributes:
        metrics: Results by name.
        facts: What is no number: fingerprints, counts by name, URLs.
        tags: Text by which the run can be searched.
        curves: Measurements in their order, by name.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)

    def add(self, other: Notes) -> None:
        """Take in what another step has recorded."""
        tables = {**self.facts.get("tables", {}), **other.facts.get("tables", {})}
        self.metrics |= other.metrics
        self.facts |= other.facts | ({"tables": tables} if tables else {})
        self.tags |= other.tags
        self.curves |= other.curves


class Run:
    """One run of a job, as a step sees it.

    Attributes:
        id: The run's name.
        job: The job's name.
        storage: The storage root.
        folder: `runs/<id>` under it: plots, rows in quarantine, the record.
        work: The step's own folder. It is the same for every run in which the step has the same
            code, parameters and inputs, so what is trained or searched with it as its storage goes
            on after a crash. What it records in MLflow is a part of this run.
    """

    def __init__(
        self, *, record: Mapping[str, Any], storage: Storage, work: Storage, tracked: TrackedRun
    ) -> None:
        """Hold what the job says; `Job` makes it.

        Args:
            record: What is known of the run as the step starts.
            storage: The storage root.
            work: The step's folder.
            tracked: The run in MLflow.
        """
        self.id, self.job = str(record["id"]), str(record["job"])
        self.storage, self.work = storage, work
        self.folder = Storage(storage.uri(f"runs/{self.id}"))
        self.notes = Notes()
        self._known, self._tracked = record, tracked

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record named results."""
        self.notes.metrics |= metrics

    def log_facts(self, **facts: Any) -> None:
        """Record what is no number: fingerprints, counts by name, URLs."""
        self.notes.facts |= facts
        self.notes.tags |= {k: v for k, v in facts.items() if isinstance(v, str | int | float)}

    def log_tables(self, **tables: Table) -> None:
        """Record rows, fingerprint and origin of Tables; `raysys lineage` prints the chain."""
        known = self.notes.facts.setdefault("tables", {})
        for name, table in tables.items():
            # In this order: what the chain then knows of the Table is written with it.
            found = {"rows": len(table), "fingerprint": table.fingerprint()}
            known[name] = {**found, "lineage": table.lineage.write(self.storage)}
            self.notes.tags |= {f"data.{name}.{key}": v for key, v in known[name].items()}
            say(f"{name}: {len(table)} rows, lineage {known[name]['lineage']}")

    def log_quarantine(self, checked: Checked, table: str | None = None) -> None:
        """Keep the rows that a check turned away, and say how many there are of each kind.

        Args:
            checked: The check's outcome.
            table: What was checked, for runs that check several Tables.
        """
        of, after = (f"{table} ", f"_{table}") if table else ("", "")
        checked.quarantine.write_parquet(self.folder, f"quarantine{after}")
        self.log_facts(**{
            f"quarantined{after}": len(checked.quarantine),
            f"quarantine_reasons{after}": checked.reasons,
        })  # fmt: skip
        say(f"{of}quarantine: {len(checked.quarantine)} of {checked.rows} rows")
        for reason, count in checked.reasons.items():
            say(f"  {count} x {reason}")

    def log_curve(self, name: str, lines: Mapping[str, Sequence[float]]) -> None:
        """Record measurements over epochs, and plot them."""
        self.notes.curves |= {line: [float(v) for v in values] for line, values in lines.items()}
        self.folder.write_bytes(f"{name}.png", plots.curves(name, lines))

    def log_search(self, name: str, score: float, trials: Sequence[Mapping[str, Any]]) -> None:
        """Record a search's trials and its best score."""
        self.folder.write_json(f"search-{name}.json", list(trials))
        self.log_metrics({f"{name}_validation_score": score})
        say(f"search {name}: best of {len(trials)} trials {score:.4f}")

    def log_comparison(self, name: str, results: Mapping[str, Mapping[str, float]]) -> None:
        """Record measures by contestant, plot them, and say them as a table."""
        for contestant, measures in results.items():
            self.log_metrics({f"{contestant}: {key}": value for key, value in measures.items()})
        self.folder.write_json(f"{name}.json", results)
        self.folder.write_bytes(f"{name}.png", plots.bars(name, results))
        names = list(next(iter(results.values())))
        width = max(len(contestant) for contestant in results) + 2
        wide = {measure: max(14, len(measure) + 2) for measure in names}
        say(f"\n{name:<{width}}" + "".join(f"{measure:>{wide[measure]}}" for measure in names))
        for contestant, values in results.items():
            said = "".join(f"{values[measure]:>{wide[measure]}.4f}" for measure in names)
            say(f"{contestant:<{width}}{said}")

    def store_model(
        self, name: str, write: Callable[[Path], None], *, signature: Mapping[str, Any]
    ) -> StoredModel:
        """Store a model with what this run knows of its making; `promote` makes it the champion.

        Args:
            name: The registered name.
            write: Fills a folder with the model's files; called in a task, so that tables
                reach the files without passing through the driver.
            signature: Form of the model's inputs and outputs.
        """
        notes = Notes(**self._known["notes"])
        notes.add(self.notes)
        known = {key: value for key, value in self._known.items() if key != "notes"}
        manifest = {**known, **asdict(notes), "signature": signature}
        return ModelStore(self.storage).save(
            name, write, manifest=manifest, run=self._tracked, path=f"models/{name}/{self.id}"
        )
