"""One graph, three uses: a plain call, HTTP in all its forms, and a job over a Table."""

import concurrent.futures
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.data import Table, described
from raysys.errors import DataError
from raysys.identity import RunIdentity
from raysys.serve import Array, Endpoint, Graph, LazyObject
from raysys.storage import Storage
from tests.serve.serving import Client, mixed_graph

pytestmark = pytest.mark.usefixtures("ray_cluster")

ARROW = "application/vnd.apache.arrow.stream"
DATATYPES = {"vector": "FP32", "weight": "INT64", "name": "BYTES", "flag": "BOOL"}
OUTPUTS = ("scores", "turned", "label", "next", "unset")

Row = tuple[list[float], int, str, bool]

rows_drawn = st.tuples(
    st.lists(
        st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False), min_size=3, max_size=3
    ),
    st.integers(-(2**40), 2**40),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.booleans(),
)


def table_of(*blocks: pa.Table) -> Table:
    return Table.from_blocks(
        [tuple(ray.put(part) for part in described(block)) for block in blocks]
    )


def output_columns(rows: list[Row]) -> dict[str, Any]:
    columns = zip(*rows, strict=True)
    return dict(zip(DATATYPES, map(list, columns), strict=True))


def as_arrow(rows: list[Row]) -> pa.Table:
    columns = output_columns(rows)
    columns["vector"] = pa.array(columns["vector"], pa.list_(pa.float32(), 3))
    return pa.table(columns)


def normal(answers: dict[str, Any]) -> dict[str, list]:
    """Outputs of any use as lists; numbers of float32 whatever they were written as."""
    kinds = {"scores": np.float32, "turned": np.float32, "next": np.int64, "unset": np.bool_}
    return {name: np.asarray(answers[name], kinds.get(name, object)).tolist() for name in OUTPUTS}


def by_json(client: Client, rows: list[Row]) -> dict[str, list]:
    answers = []
    for row in rows:
        reply = client.post(dict(zip(DATATYPES, row, strict=True)))
        assert reply.status == 200, reply
        answers.append(reply.json)
    return normal({name: [answer[name] for answer in answers] for name in OUTPUTS})


def by_arrow(client: Client, rows: list[Row]) -> dict[str, list]:
    table, sink = as_arrow(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    reply = client.post(sink.getvalue().to_pybytes(), {"content-type": ARROW})
    assert reply.status == 200, reply
    return normal(pa.ipc.open_stream(reply.body).read_all().to_pydict())


def by_v2(client: Client, rows: list[Row]) -> dict[str, list]:
    columns = output_columns(rows)
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [len(rows), 3] if name == "vector" else [len(rows)],
            "data": columns[name],
        }
        for name, datatype in DATATYPES.items()
    ]
    reply = client.post({"inputs": inputs}, path="/v2/models/mixed/infer")
    assert reply.status == 200, reply
    tensors = {one["name"]: one for one in reply.json["outputs"]}
    return normal({name: np.reshape(one["data"], one["shape"]) for name, one in tensors.items()})


def test_all_uses_of_a_graph_give_the_same_answers(mixed: Endpoint) -> None:
    graph, client = mixed_graph(), Client(mixed.url)
    drawn: list[list[Row]] = []

    @settings(max_examples=40, deadline=None, database=None,
              suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    @given(st.lists(rows_drawn, min_size=1, max_size=8))
    def over_http(rows: list[Row]) -> None:
        plain = normal(graph(output_columns(rows)))
        assert by_json(client, rows) == plain
        assert by_arrow(client, rows) == plain
        assert by_v2(client, rows) == plain
        drawn.append(rows)

    over_http()
    # Rows of different requests in one batch.
    rows = [row for batch in drawn for row in batch]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda row: by_json(Client(mixed.url), [row]), rows[:64]))
    plain = normal(graph(output_columns(rows)))
    assert {name: [one for part in parts for one in part[name]] for name in OUTPUTS} == {
        name: column[:64] for name, column in plain.items()
    }
    # Actors start slowly: one job over all that was drawn, cut otherwise than the requests were.
    half = len(rows) // 2
    mapped = graph.map(
        table_of(as_arrow(rows[:half]), as_arrow(rows[half:])), batch_size=7, max_actors=1
    )
    assert len(mapped.blocks()) == 2
    assert normal(mapped.to_arrow().to_pydict()) == plain


class Mortal:
    """A node that kills its process once, at the value 50."""

    def __init__(self, marker: str) -> None:
        self._marker = Path(marker)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if 50 in x:
            try:
                self._marker.touch(exist_ok=False)
            except FileExistsError:
                return 2 * x
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * x


def numbers(blocks: int, rows: int = 10) -> Table:
    return table_of(*(pa.table({"x": np.arange(rows * n, rows * (n + 1))}) for n in range(blocks)))


def graph_of(node: Any) -> Graph:
    return Graph(inputs={"x": Array("int64")}, nodes={"y": node}, output="y")


def test_a_job_whose_actor_is_killed_gives_all_rows_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "killed"
    answers = graph_of(LazyObject(Mortal, str(marker))).map(
        numbers(12), name="mortal", max_actors=2
    )
    assert marker.exists()
    assert answers.to_arrow()["y"].to_pylist() == list(range(0, 240, 2))
    assert "mortal: an actor died" in capsys.readouterr().out


class Fragile:
    """A node that leaves a file for each batch it answers, and fails at 40 and above at first."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._is_mended = (self._folder / "mended").exists()  # an actor that lingers stays bad

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if x.max() >= 40 and not self._is_mended:
            raise ZeroDivisionError("a node that fails")
        (self._folder / f"{x[0]}-{uuid.uuid4().hex}").touch()
        return 2 * x


def test_a_job_goes_on_where_it_was_interrupted(tmp_path: Path, storage: Storage) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    graph, table = graph_of(LazyObject(Fragile, str(calls))), numbers(6)

    def answered() -> list[int]:
        return sorted(int(file.name.split("-")[0]) for file in calls.glob("*-*"))

    with pytest.raises(ZeroDivisionError, match="a node that fails"):
        graph.map(table, storage=storage, path="answers", max_actors=1)
    assert answered() == [0, 10, 20, 30]
    (calls / "mended").touch()
    answers = graph.map(table, storage=storage, path="answers", max_actors=1)
    assert answered() == [0, 10, 20, 30, 40, 50]
    assert answers.to_arrow()["y"].to_pylist() == list(range(0, 120, 2))
    # With everything there, nothing is made again; and blocks are known by what they hold.
    swapped = Table(table.blocks()[::-1], table.metas()[::-1])
    again = graph.map(swapped, storage=storage, path="answers", max_actors=1)
    assert again.to_arrow()["y"].to_pylist()[:3] == [100, 102, 104]
    assert len(answered()) == 6


def test_a_path_with_answers_of_another_graph_is_refused(storage: Storage) -> None:
    identity = RunIdentity({"graph": graph_of(lambda x: x).fingerprint})
    identity.write(storage, "answers")
    with pytest.raises(DataError, match="started with other settings or data: graph"):
        graph_of(lambda x: x + 1).map(numbers(1), storage=storage, path="answers")


def test_a_table_without_a_column_is_refused_before_actors_start() -> None:
    with pytest.raises(DataError, match=r"lacks the columns \['x'\].*\['z'\]"):
        graph_of(lambda x: x).map(table_of(pa.table({"z": [1, 2]})))


def test_a_column_of_another_type_is_refused_with_its_name() -> None:
    with pytest.raises(DataError, match="x: "):
        graph_of(lambda x: x).map(table_of(pa.table({"x": ["a", "b"]})), max_actors=1)
