"""What a job's run leaves in MLflow."""

from pathlib import Path

import mlflow
import pyarrow as pa
import pytest
from pydantic import BaseModel

from raysys.data import Table
from raysys.storage import Storage
from raysys.tracking import open_run
from raysys.workflow import Run

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Config(BaseModel):
    seed: int = 3
    rate: float = 0.5


def rows() -> pa.Table:
    return pa.table({"x": [1, 2, 3]})


def test_a_run_and_its_parts(storage: Storage, mlflow_database: str) -> None:
    with Run("tracked_job", Config(), storage) as run:
        with run.stage("etl"):
            table = Table.load(rows)
            run.log_tables(train=table)
        part = open_run(run.folder, "training", "net")
        part.end("FINISHED")
        run.log_curve("losses", {"loss": [2.0, 1.0]})
        run.log_facts(endpoint="http://host/x", reasons={"a": 1})
        run.log_metrics({"auc": 0.75})
    client = mlflow.MlflowClient(mlflow_database)
    where = [client.get_experiment_by_name("tracked_job").experiment_id]
    (found,) = client.search_runs(where, f"attributes.run_name = '{run.id}'")
    (below,) = client.search_runs(where, f"tags.mlflow.parentRunId = '{found.info.run_id}'")
    assert below.info.run_id == part.run_id
    assert (found.info.status, found.data.metrics["auc"]) == ("FINISHED", 0.75)
    assert found.data.params == {"seed": "3", "rate": "0.5"}
    tags = found.data.tags
    assert (tags["data.train.fingerprint"], tags["data.train.rows"]) == (table.fingerprint, "3")
    assert tags["data.train.lineage"] == table.lineage.id
    assert tags["endpoint"] == "http://host/x"
    assert "reasons" not in tags
    assert found.data.metrics["stage/etl/seconds"] == run.stages[0].seconds
    assert 0 <= found.data.metrics["system/node_cpu_percent"] <= 100
    assert found.data.metrics["loss"] == 1.0
    assert Path(run.folder.root, "losses.png").exists()


def test_a_run_that_fails_says_so(storage: Storage, mlflow_database: str) -> None:
    run = Run("failing_job", Config(), storage)

    def fail() -> None:
        with run:
            run.log_metrics({"auc": 0.5})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    client = mlflow.MlflowClient(mlflow_database)
    (found,) = client.search_runs([client.get_experiment_by_name("failing_job").experiment_id])
    assert (found.info.run_name, found.info.status) == (run.id, "FAILED")
    assert found.data.metrics["auc"] == 0.5
