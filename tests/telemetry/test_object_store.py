"""Counters of object-store traffic and of tables in the driver, on a real local cluster."""

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

from raysys.telemetry import object_store
from raysys.telemetry.object_store import DriverMeter, count_reads, store_bytes

SIZE = 10_000_000
SLACK = 20_000  # Headers of the objects, and 8 bytes for each worker that starts meanwhile.
# As ray.init(runtime_env={"worker_process_setup_hook": READ_HOOK}), which Ray takes of a job only:
# with the hook on the tasks, these tests do not depend on how the cluster was started.
READ_HOOK = f"{count_reads.__module__}.{count_reads.__name__}"
ROOT = str(Path(object_store.__file__).parents[2])  # Workers must find raysys, or the hook fails.
COUNTING: Any = {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: READ_HOOK, "PYTHONPATH": ROOT}}

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def meter() -> Iterator[DriverMeter]:
    meter = DriverMeter()
    meter.install()
    yield meter
    meter.uninstall()


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(50_000.0), "b": np.arange(50_000)})  # 800,000 bytes.


def _remote(task_or_actor: Any) -> Any:  # Typed, unlike Ray's own decorator.
    return ray.remote(task_or_actor)


@_remote
def put_inside(size: int) -> list[Any]:
    return [ray.put(np.zeros(size, dtype=np.uint8))]


@_remote
def zeros(size: int) -> Any:
    return np.zeros(size, dtype=np.uint8)


@_remote
def length(value: Any) -> int:
    return len(value)


@_remote
class Reader:
    def length(self, value: Any) -> int:
        return len(value)

    def get(self, refs: list[Any]) -> int:
        return len(ray.get(refs[0]))


def test_put_counts_objects_created_anywhere() -> None:
    before = store_bytes().put
    kept = [ray.get(put_inside.remote(SIZE)), zeros.remote(SIZE)]
    ray.wait([kept[1]])
    assert store_bytes().put - before == pytest.approx(2 * SIZE, abs=SLACK)


def test_put_leaves_out_what_ray_inlines() -> None:
    before = store_bytes().put
    kept = zeros.remote(50_000)  # Small results and arguments travel in the message itself.
    ray.get([kept, length.remote(np.zeros(50_000, dtype=np.uint8))])
    assert store_bytes().put - before < 1_000
    small = ray.put(np.zeros(50_000, dtype=np.uint8))  # But ray.put always uses the store.
    assert store_bytes().put - before == pytest.approx(50_000, abs=1_000)
    del small


def test_read_counts_arguments_and_gets_in_every_process() -> None:
    count_reads()
    ref = ray.put(np.zeros(SIZE, dtype=np.uint8))
    actor: Any = Reader
    reader = actor.options(runtime_env=COUNTING).remote()
    ray.get([reader.length.remote([]), length.options(runtime_env=COUNTING).remote([])])
    before = store_bytes()
    assert before.read is not None
    ray.get([length.options(runtime_env=COUNTING).remote(ref) for _ in range(2)])
    ray.get([reader.length.remote(ref), reader.get.remote([ref])])
    ray.get(ref)
    after = store_bytes()
    assert after.read is not None
    assert after.read - before.read == pytest.approx(5 * SIZE, abs=SLACK)
    assert after.put - before.put < SLACK
    ray.kill(reader)
    assert store_bytes().read == after.read  # A worker's count outlives it.


def test_read_is_unknown_rather_than_zero_where_nobody_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_store._ReadCount, "folder", None)
    assert store_bytes().read is None


def test_get_of_a_table_counts_in(meter: DriverMeter, frame: pd.DataFrame) -> None:
    ref = ray.put(frame)
    meter.table_bytes_out = 0
    ray.get([ref, ref])
    assert meter.table_bytes_in == pytest.approx(2 * 800_000, abs=5_000)
    assert meter.table_bytes_out == 0
    assert meter.table_bytes == meter.table_bytes_in
    assert meter.take_biggest()[0][0].startswith(f"table DataFrame in at {__file__}:")
    assert meter.biggest == []


def test_put_argument_and_closure_of_a_table_count_out(
    meter: DriverMeter, frame: pd.DataFrame
) -> None:
    ray.put(frame)
    assert meter.table_bytes_out == pytest.approx(800_000, abs=5_000)
    ray.get(length.remote(frame))
    assert meter.table_bytes_out == pytest.approx(2 * 800_000, abs=5_000)
    bound = functools.partial(len, frame)

    @_remote
    def rows() -> int:
        return bound()

    ray.get(rows.remote())
    assert meter.table_bytes_out == pytest.approx(3 * 800_000, abs=5_000)
    assert meter.table_bytes_in == 0


@pytest.mark.parametrize("table", ["series", "array", "arrow", "chunked"])
def test_every_kind_of_table_counts_however_deep(meter: DriverMeter, table: str) -> None:
    arrow = pa.table({"a": np.arange(10_000)})
    value = {
        "series": pd.Series(["x"] * 10_000),
        "array": np.arange(10_000),
        "arrow": arrow,
        "chunked": arrow["a"],
    }[table]
    ray.get(ray.put({"deep": [(Exception(), {"er": value})]}))
    assert min(meter.table_bytes_in, meter.table_bytes_out) > 10_000


def test_a_reference_and_plain_values_count_nothing(
    meter: DriverMeter, frame: pd.DataFrame
) -> None:
    ref = ray.put(frame)
    meter.table_bytes_out = 0
    ray.get(length.remote(ref))
    ray.get(length.remote([ref]))
    ray.get(ray.put({"text": "x" * 10_000, "numbers": [1.5] * 10_000, "scalar": np.float64(1)}))
    assert (meter.table_bytes_in, meter.table_bytes_out) == (0, 0)
    assert (meter.label_bytes_in, meter.label_bytes_out) == (0, 0)


def test_labels_count_apart(meter: DriverMeter, frame: pd.DataFrame) -> None:
    index = pd.Index(np.arange(10_000))
    ray.get(ray.put([index, frame.columns, frame.dtypes, frame.iloc[:0], np.array([1, 2])]))
    assert (meter.table_bytes_in, meter.table_bytes_out) == (0, 0)
    assert min(meter.label_bytes_in, meter.label_bytes_out) > 80_000
    ray.put([index, np.arange(10_000.0)])  # Labels do not hide the table beside them.
    assert meter.table_bytes_out > 80_000


def test_uninstall_stops_the_count(meter: DriverMeter, frame: pd.DataFrame) -> None:
    meter.uninstall()
    ray.get(ray.put(frame))
    assert (meter.table_bytes_in, meter.table_bytes_out, meter.biggest) == (0, 0, [])


def test_a_modin_pipeline_keeps_tables_out_of_the_driver(
    meter: DriverMeter, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODIN_ENGINE", "ray")
    monkeypatch.setenv("MODIN_CPUS", "2")
    import modin.pandas as mpd

    frame.assign(k=frame.b % 10).to_csv(tmp_path / "in.csv", index=False)
    table = mpd.read_csv(tmp_path / "in.csv")
    kept = table[table["b"] > 100]
    sums = kept.merge(kept.groupby("k", as_index=False)[["a"]].sum(), on="k")
    sums.to_parquet(tmp_path / "out")
    assert (meter.table_bytes_in, meter.table_bytes_out) == (0, 0), meter.biggest
    back = sums._to_pandas()  # What the zero above would miss if the meter were blind to Modin.
    assert meter.table_bytes_in >= back.a_x.nbytes


def test_import_is_light() -> None:
    code = (
        "import sys, raysys.telemetry.object_store\n"
        "sys.exit(bool({'ray', 'pandas', 'numpy', 'pyarrow', 'modin'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
