"""The record of one run of a job: stages with their costs, settings, results and plots."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raysys import cluster
from raysys.models import ModelStore, StoredModel
from raysys.storage import Storage
from raysys.telemetry import DriverMeter, NodeMeter, record_stage, store_bytes
from raysys.tracking import TrackedRun, git_commit, open_run, package_versions, plots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import BaseModel

    from raysys.data import Checked, Table


@dataclass(frozen=True)
class Stage:
    """What one stage of a job cost."""

    name: str
    seconds: float
    put_bytes: int
    read_bytes: int
    driver_table_bytes: int
    driver_label_bytes: int


class Run:
    """One run of a job, from connecting to the cluster to the record in the storage root.

    Everything that the job leaves stands under `runs/<id>/`, which is `folder`. Settings, stages
    and metrics are in MLflow too, with commit, package versions and Tables as tags; what is
    trained or searched with `folder` as its storage is a part of this run there. What a stage
    leaves running is ended by a callback in `on_failure`, if the run fails.

    Example:
        with Run("recommender", config, Storage()) as run:
            with run.stage("etl"):
                ...
            run.log_metrics({"ndcg_at_10": 0.08})
    """

    def __init__(self, job: str, config: BaseModel, storage: Storage) -> None:
        """Name a run.

        Args:
            job: The job's name; it becomes the MLflow experiment.
            config: The job's settings, recorded as they are.
            storage: Where the run's folder is made.
        """
        moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.id = f"{job}-{moment}-{secrets.token_hex(2)}"
        self.job, self.config, self.storage = job, config, storage
        self.folder = Storage(storage.uri(f"runs/{self.id}"))
        self.stages: list[Stage] = []
        self.metrics: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self._models = ModelStore(storage)
        self._meter = DriverMeter()
        self.on_failure = ExitStack()

    def __enter__(self) -> Run:
        cluster.connect()
        settings = self.config.model_dump()
        self._tracked: TrackedRun = open_run(self.storage, self.job, self.id, settings=settings)
        self._tracked.nest(self.folder)
        self._tracked.watch(NodeMeter().read)
        self._meter.install()
        say(f"run {self.id}: artefacts under {self.folder.root}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._meter.uninstall()
        status = "FINISHED" if kind is None else "FAILED"
        undo = self.on_failure.pop_all()
        if kind is not None:
            undo.close()
        self.folder.write_json("run.json", self._record(status))
        self._tracked.end(status, self.metrics)
        total = sum(stage.driver_table_bytes for stage in self.stages)
        say(
            f"run {self.id} {status.lower()} after {sum(s.seconds for s in self.stages):.0f} s of "
            f"stages; tables through the driver: {total} bytes"
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, count its bytes, and say a line when it ends."""
        say(f"[{name}] ...")
        store, tables, labels = store_bytes(), self._meter.table_bytes, self._meter.label_bytes
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds, after = time.perf_counter() - started, store_bytes()
            stage = Stage(
                name=name,
                seconds=seconds,
                put_bytes=after.put - store.put,
                read_bytes=(after.read or 0) - (store.read or 0),
                driver_table_bytes=self._meter.table_bytes - tables,
                driver_label_bytes=self._meter.label_bytes - labels,
            )
            self.stages.append(stage)
            costs = {key: cost for key, cost in asdict(stage).items() if key != "name"}
            self._tracked.log(
                {f"stage/{name}/{key}": cost for key, cost in costs.items()}, len(self.stages)
            )
            record_stage(self.job, name, seconds, stage.driver_table_bytes)
            say(
                f"[{name}] {seconds:.1f} s; object store: put {_mebibytes(stage.put_bytes)}, read "
                f"{_mebibytes(stage.read_bytes)}; through the driver: tables "
                f"{stage.driver_table_bytes} bytes, row labels {stage.driver_label_bytes} bytes"
            )
            for what, size in self._meter.take_biggest():
                if what.startswith("table"):
                    say(f"[{name}]   {size} bytes through the driver: {what}")

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record named results."""
        self.metrics |= metrics

    def log_facts(self, **facts: Any) -> None:
        """Record what is no number: fingerprints, counts by name, URLs."""
        self.facts |= facts
        plain = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
        self._tracked.log_tags(plain)

    def log_tables(self, **tables: Table) -> None:
        """Record rows, fingerprint and origin of Tables; `raysys lineage` prints the chain."""
        known = self.facts.setdefault("tables", {})
        for name, table in tables.items():
            # In this order: what the chain then knows of the Table is written with it.
            found = {"rows": table.rows, "fingerprint": table.fingerprint}
            known[name] = {**found, "lineage": table.lineage.write(self.storage)}
            self._tracked.log_tags({f"data.{name}.{key}": v for key, v in known[name].items()})
            say(f"{name}: {table.rows} rows, lineage {known[name]['lineage']}")

    def log_quarantine(self, checked: Checked, table: str | None = None) -> None:
        """Keep the rows that a check turned away, and say how many there are of each kind.

        Args:
            checked: The check's outcome.
            table: What was checked, for runs that check several Tables.
        """
        of, after = (f"{table} ", f"_{table}") if table else ("", "")
        checked.quarantine.write_parquet(self.folder, f"quarantine{after}")
        self.log_facts(**{
            f"quarantined{after}": checked.quarantine.rows,
            f"quarantine_reasons{after}": checked.reasons,
        })  # fmt: skip
        say(f"{of}quarantine: {checked.quarantine.rows} of {checked.rows} rows")
        for reason, count in checked.reasons.items():
            say(f"  {count} x {reason}")

    def log_curve(self, name: str, lines: Mapping[str, Sequence[float]]) -> None:
        """Record measurements over epochs, and plot them."""
        for line, values in lines.items():
            self._tracked.log_curve(line, values)
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
        """Store a model with what this run knows of its making; it becomes the champion.

        Args:
            name: The registered name.
            write: Fills a folder with the model's files; called in a task, so that tables
                reach the files without passing through the driver.
            signature: Form of the model's inputs and outputs.
        """
        manifest = {**self._record("RUNNING"), "signature": signature}
        return self._models.save(
            name, write, manifest=manifest, run=self._tracked, path=f"runs/{self.id}/model"
        )

    def _record(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "job": self.job,
            "status": status,
            "config": json.loads(self.config.model_dump_json()),
            "stages": [asdict(stage) for stage in self.stages],
            "metrics": self.metrics,
            "facts": self.facts,
            "packages": package_versions(),
            "git_commit": git_commit(),
        }


def say(text: str) -> None:
    """One plain line of progress, at once: under `ray job submit` it is streamed."""
    print(text, flush=True)


def _mebibytes(count: int) -> str:
    """A byte count for people."""
    return f"{count / 2**20:.1f} MiB"
