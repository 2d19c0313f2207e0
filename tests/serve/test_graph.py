import functools
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from raysys.errors import DataError, GraphError
from raysys.serve import Array, Graph, LazyObject, Placement, bind_inputs
from raysys.serve._bulk_map import _Mapper

INT = {"x": Array("int64")}


class Shift:
    """Counts how often it is made in this process."""

    made = 0
    note = "not a method"

    def __init__(self, by: int, scale: int = 1) -> None:
        type(self).made += 1
        self.by, self.scale = by, scale

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scale * x + self.by

    def up(self, x: np.ndarray) -> np.ndarray:
        return x + self.by

    def down(self, up: np.ndarray) -> np.ndarray:
        return up - self.by


class Table:
    """Has methods, but no `__call__`."""

    def look(self, x: np.ndarray) -> np.ndarray:
        return x


class Doubler:
    """A callable object that is no LazyObject."""

    def __call__(self, x: Annotated[np.ndarray, Array("int64")]) -> np.ndarray:
        return 2 * x


@pytest.fixture(autouse=True)
def _nothing_made() -> None:
    Shift.made = 0


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def graph_of(nodes: dict[str, Any], output: str = "y", inputs: Any = INT, **more: Any) -> Graph:
    return Graph(inputs=inputs, nodes=nodes, output=output, **more)


def test_each_node_runs_once_after_what_it_needs() -> None:
    ran: list[str] = []

    def base(x: np.ndarray) -> np.ndarray:
        ran.append("base")
        return x + 1

    def left(base: np.ndarray) -> np.ndarray:
        ran.append("left")
        return base * 10

    def right(x: np.ndarray, base: np.ndarray) -> np.ndarray:
        ran.append("right")
        return base * x

    def y(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        ran.append("y")
        return left - right

    graph = graph_of({node.__name__: node for node in (y, right, left, base)})
    np.testing.assert_array_equal(graph({"x": np.array([1, 2])}), [18, 24])
    assert (ran[0], ran[-1]) == ("base", "y")
    assert sorted(ran[1:3]) == ["left", "right"]


def test_nodes_that_the_output_does_not_need_are_neither_run_nor_loaded() -> None:
    def unwanted(x: np.ndarray) -> np.ndarray:
        raise AssertionError("ran")

    nodes = {
        "y": double,
        "unwanted": unwanted,
        "after_output": lambda y, unwanted: y,
        "shifted": LazyObject(Shift, 1),
    }
    graph = graph_of(nodes)
    assert graph.order == ("y",)
    graph.load(graph.order)
    assert graph({"x": [4]}).tolist() == [8]
    assert Shift.made == 0


def test_columns_are_checked_and_brought_to_their_types() -> None:
    graph = graph_of({"y": lambda x, z: (x, z)}, inputs={"x": Array("float32"), "z": Array("str")})
    x, z = graph({"x": [1, 2], "z": ["a", "b"]})
    assert (x.dtype, z.dtype) == (np.float32, object)
    with pytest.raises(DataError, match=r"^z: expected strings"):
        graph({"x": [1], "z": [1]})
    with pytest.raises(DataError, match=r"equal lengths, given {'x': 1, 'z': 2}"):
        graph({"x": [1], "z": ["a", "b"]})


def test_missing_columns_are_named_and_others_are_let_be() -> None:
    graph = graph_of({"y": double})
    assert graph({"x": [4], "y": [0], "other": object()}).tolist() == [8]
    with pytest.raises(DataError, match=r"inputs \['x'\] are missing; given \['a', 'b'\]"):
        graph({"b": [1], "a": [1]})


class Visit(BaseModel):
    age: int = Field(ge=0, le=150)
    weight: Annotated[float, Field(gt=0)] = 70.0
    tags: list[str] = []


def test_a_pydantic_model_gives_the_inputs_their_types() -> None:
    graph = graph_of({"y": lambda age, weight: age * weight}, inputs=Visit)
    assert graph.request is Visit
    assert graph.inputs == {
        "age": Array("int64"), "weight": Array("float64"), "tags": Array("str", (None,)),
    }  # fmt: skip
    assert graph({"age": [2], "weight": [3], "tags": [["a", "b"]]}).tolist() == [6.0]


def test_a_model_whose_field_makes_no_column_is_refused() -> None:
    class Nested(BaseModel):
        visit: Visit

    with pytest.raises(GraphError, match="field 'visit' of the request"):
        graph_of({"y": lambda visit: visit}, inputs=Nested)


def test_a_nodes_parameters_may_be_fed_by_others_than_their_names() -> None:
    nodes = {
        "twice": bind_inputs(double, x="a"),
        "back": bind_inputs(LazyObject(Shift, 1).down, up="b"),
        "y": bind_inputs(bind_inputs(lambda p, q: 10 * p + q, p="r"), r="twice", q="back"),
    }
    graph = graph_of(nodes, inputs={"a": Array("int64"), "b": Array("int64")})
    assert graph.nodes["y"].needs == ("twice", "back")
    assert graph({"a": [3], "b": [8]}).tolist() == [67]


def test_one_function_serves_as_several_nodes() -> None:
    nodes = {
        "once": double,
        "twice": bind_inputs(double, x="once"),
        "y": bind_inputs(double, x="twice"),
    }
    assert graph_of(nodes)({"x": [1]}).tolist() == [8]


def test_feeding_a_parameter_that_is_not_there_is_refused() -> None:
    with pytest.raises(GraphError, match=r"node 'y': unknown parameters \['z'\]; it has \['x'\]"):
        graph_of({"y": bind_inputs(double, z="x")})


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            {"y": lambda b: b, "b": lambda c: c, "c": lambda y: y},
            r"cycle of nodes: \[('[ybc]',? ?){4}\]",
        ),
        ({"y": lambda y: y}, r"cycle of nodes: \['y', 'y'\]"),
        ({"y": lambda x, usr, itm: x}, r"node 'y' needs \['usr', 'itm'\].*\['x'\].*\['y'\]"),
        ({"b": lambda x: x}, r"output 'y' is not a node; nodes are \['b'\]"),
        ({"y": double, "x": double}, r"\['x'\] are both inputs and nodes"),
        ({"y": 3}, r"node 'y': type int is not callable: give a function or a LazyObject"),
        ({"y": LazyObject(Table)}, r"node 'y': Table has no __call__; give one of its methods"),
        ({"y": double, "unused": lambda z: z}, r"node 'unused' needs \['z'\]"),
    ],
    ids=["circle", "self", "missing", "output", "twice", "number", "no call", "unused"],
)
def test_an_ill_formed_graph_is_refused_by_name(nodes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph_of(nodes)


def test_a_placement_of_no_node_is_refused_by_name() -> None:
    placement = {"y": Placement(), "z": Placement(gpus=1), "a": Placement()}
    with pytest.raises(
        GraphError, match=r"placement of unknown nodes \['a', 'z'\].*nodes are \['y'\]"
    ):
        graph_of({"y": double}, placement=placement)


def test_a_node_knows_its_placement() -> None:
    graph = graph_of({"p": double, "y": lambda p: p}, placement={"p": Placement(2, gpus=1)})
    assert graph.nodes["p"].placement == Placement(replicas=2, cpus=1.0, gpus=1)
    assert graph.nodes["y"].placement is None


def gives_wide(x: np.ndarray) -> Annotated[np.ndarray, Array("float32", (8,))]:
    return np.zeros((len(x), 8), np.float32)


def takes_narrow(p: Annotated[np.ndarray, Array("float32", (4,))]) -> np.ndarray:
    return p


def takes_wide(p: Annotated[np.ndarray, Array("float32", (None,))]) -> np.ndarray:
    return p


def takes_dict(p: dict[str, np.ndarray]) -> np.ndarray:
    return p["a"]


def takes_text(x: Annotated[np.ndarray, Array("str")]) -> np.ndarray:
    return x


def gives_dict(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"a": x}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            {"p": gives_wide, "y": takes_narrow},
            r"^node 'p' -> node 'y': float32\[n, 8\], expected float32\[n, 4\]$",
        ),
        ({"p": gives_wide, "y": takes_dict}, r"^node 'p' -> node 'y': ndarray, expected dict"),
        ({"y": takes_text}, r"^input 'x' -> node 'y': int64\[n\], expected str\[n\]$"),
        (
            {"wide": gives_wide, "y": bind_inputs(takes_narrow, p="wide")},
            r"^node 'wide' -> node 'y': float32\[n, 8\]",
        ),
    ],
    ids=["shapes", "classes", "input", "renamed"],
)
def test_an_edge_whose_ends_do_not_fit_is_refused_with_both_ends(
    nodes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        graph_of(nodes)


@pytest.mark.parametrize(
    "nodes",
    [
        {"p": gives_wide, "y": takes_wide},
        {"p": gives_dict, "y": takes_dict},
        {"p": lambda x: x, "y": takes_narrow},
        {"p": gives_wide, "y": lambda p: p},
        {"y": Doubler()},
    ],
    ids=["any length", "classes", "untyped source", "untyped sink", "object"],
)
def test_an_edge_whose_ends_fit_or_are_untyped_is_taken(nodes: dict[str, Any]) -> None:
    assert graph_of(nodes).output == "y"


def test_annotations_that_exist_for_type_checkers_only_are_let_be() -> None:
    def node(x: "NotThere") -> "NeitherThis":  # type: ignore[name-defined]  # noqa: F821
        return x

    assert graph_of({"y": node})({"x": [1]}).tolist() == [1]


def test_an_error_in_a_node_keeps_its_type_and_names_the_node() -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        raise KeyError("weights")

    graph = graph_of({"model": broken, "y": lambda model: model})
    with pytest.raises(KeyError) as raised:
        graph({"x": [1]})
    assert raised.value.__notes__ == ["in node 'model'"]


def test_running_some_nodes_gives_their_values_and_leaves_the_given_ones_alone() -> None:
    graph = graph_of({"a": double, "b": lambda a: a + 1, "y": lambda b: -b})
    seen: list[tuple[str, float]] = []
    values = {"x": np.array([1])}
    made = graph.run(("a", "b"), values, lambda name, seconds: seen.append((name, seconds)))
    assert {name: value.tolist() for name, value in made.items()} == {"a": [2], "b": [3]}
    assert list(values) == ["x"]
    assert [name for name, _ in seen] == ["a", "b"]
    assert all(seconds >= 0 for _, seconds in seen)


def test_a_lazy_is_made_once_at_first_use_and_shared_by_its_methods() -> None:
    shift = LazyObject(Shift, 3)
    graph = graph_of({"up": shift.up, "down": shift.down, "y": bind_inputs(shift, x="down")})
    assert Shift.made == 0
    for _ in range(2):
        assert graph({"x": [1]}).tolist() == [4]
    assert Shift.made == 1


def test_a_lazy_is_given_its_arguments() -> None:
    assert graph_of({"y": LazyObject(Shift, 3, scale=10)})({"x": [1]}).tolist() == [13]


def test_loading_makes_what_the_named_nodes_need_and_nothing_else() -> None:
    one, other = LazyObject(Shift, 1), LazyObject(Shift, 2)
    graph = graph_of({"up": one.up, "y": bind_inputs(other.down, up="up"), "plain": double})
    graph.load(["up", "plain"])
    assert Shift.made == 1
    graph.load(graph.order)
    assert Shift.made == 2
    graph({"x": [1]})
    assert Shift.made == 2


@pytest.mark.parametrize("name", ["note", "missing", "_private"])
def test_what_is_no_method_of_a_lazy_is_no_attribute_either(name: str) -> None:
    with pytest.raises(AttributeError, match=f"Shift has no method '{name}'"):
        getattr(LazyObject(Shift, 1), name)


def test_a_lazy_that_was_made_travels_as_its_description() -> None:
    class Heavy:
        def __init__(self) -> None:
            self.cannot_travel = lambda: os.getpid()  # plain pickle refuses it

    lazy = LazyObject(Shift, 3)
    assert lazy(np.array([1])).tolist() == [4]
    lazy._instance.weights = Heavy()
    copy = pickle.loads(pickle.dumps(lazy))
    assert Shift.made == 1
    assert copy.up(np.array([1])).tolist() == [4]
    assert Shift.made == 2


def test_a_graph_travels_by_cloudpickle_with_its_lambdas_and_shared_lazies() -> None:
    shift, offset = LazyObject(Shift, 3), 100
    nodes = {"up": shift.up, "down": shift.down, "y": lambda up, down: up + down + offset}
    graph = graph_of(nodes, placement={"up": Placement()})
    graph({"x": [1]})
    graph.plan  # noqa: B018
    copy = cloudpickle.loads(cloudpickle.dumps(graph))
    assert Shift.made == 1
    assert copy({"x": [1]}).tolist() == [105]
    assert Shift.made == 2
    assert copy.plan == graph.plan
    assert copy.fingerprint == graph.fingerprint


def test_the_plan_reads_as_inputs_deployments_steps_and_what_is_left_out() -> None:
    nodes = {
        "users": double,
        "tower": lambda users: users,
        "rules": lambda x: x,
        "y": lambda tower, rules: tower + rules,
        "stale": double,
    }
    placement = {"tower": Placement(2, cpus=0.5, gpus=1), "rules": Placement(isolated=True)}
    assert graph_of(nodes, placement=placement).explain().splitlines() == [
        "inputs: x int64[n]",
        "output: y",
        "deployment entry (replicas as deployed): users, y (receives requests and batches them)",
        "deployment rules (1 x 1 CPU): rules (isolated)",
        "deployment tower (2 x 0.5 CPU, 1 GPU): tower (has a placement of its own)",
        "step 0: users in entry",
        "step 1: rules in rules, one object there and one back for each batch",
        "step 2 after 0: tower in tower, one object there and one back for each batch",
        "step 3 after 1, 2: y in entry",
        "steps 0 and 1 run concurrently",
        "steps 1 and 2 run concurrently",
        "left out, not needed for the output: stale",
    ]


def test_the_plan_is_drawn_as_a_flowchart() -> None:
    nodes = {"tower": double, "y": lambda x, tower: x + tower, "stale": double}
    graph = graph_of(nodes, placement={"tower": Placement()})
    assert graph.explain("mermaid").splitlines() == [
        "flowchart LR",
        '    x(["x: int64[n]"])',
        '    subgraph stage0["entry"]',
        "        y",
        "    end",
        '    subgraph stage1["tower"]',
        "        tower",
        "    end",
        "    x --> tower",
        "    x --> y",
        "    tower --> y",
        '    y --> answer_(["answer"])',
    ]


def _fingerprint(**change: Any) -> str:
    parts: dict[str, Any] = {
        "inputs": INT,
        "nodes": {"up": LazyObject(Shift, 3).up, "y": lambda up: up + 1},
        "placement": {"up": Placement()},
        "output": "y",
    }
    return Graph(**{**parts, **change}).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": {"up": LazyObject(Shift, 4).up, "y": lambda up: up + 1}},
        {"nodes": {"up": LazyObject(Shift, 3, scale=2).up, "y": lambda up: up + 1}},
        {"nodes": {"up": LazyObject(Shift, 3), "y": lambda up: up + 1}},
        {"nodes": {"up": LazyObject(Shift, 3).up, "y": lambda up: up + 2}},
        {"inputs": {"x": Array("float32")}},
        {"placement": {}},
        {"output": "up"},
    ],
    ids=["argument", "keyword", "method", "source", "inputs", "placement", "output"],
)
def test_the_fingerprint_tells_graphs_apart(change: dict[str, Any]) -> None:
    assert _fingerprint() == _fingerprint()
    assert _fingerprint(**change) != _fingerprint()


def test_the_fingerprint_tells_apart_who_feeds_a_node() -> None:
    inputs = {"x": Array("int64"), "z": Array("int64")}
    one = graph_of({"y": bind_inputs(double, x="x")}, inputs=inputs)
    other = graph_of({"y": bind_inputs(double, x="z")}, inputs=inputs)
    assert one.fingerprint != other.fingerprint


def test_the_fingerprint_of_an_object_does_not_hang_on_where_it_lies() -> None:
    one, other = Doubler(), Doubler()
    assert graph_of({"y": one}).fingerprint == graph_of({"y": other}).fingerprint


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "scoring.py").write_text(
        "from raysys.serve import Array, Graph, LazyObject, Placement\n"
        "class Model:\n"
        "    def __init__(self, **how): pass\n"
        "    def __call__(self, x): return x\n"
        "graph = Graph(\n"
        "    inputs={'x': Array(), 'z': Array('str')},\n"
        "    nodes={'p': LazyObject(Model, path='/a', seed=1),\n"
        "           'q': lambda p, z: p, 'y': lambda q: q},\n"
        "    output='y',\n"
        "    placement={'p': Placement(2), 'q': Placement(isolated=True)},\n"
        ")\n"
    )
    command = [sys.executable, "-c", "import scoring; print(scoring.graph.fingerprint)"]
    said = {
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


class Methods:
    """Methods that have no `self`."""

    @staticmethod
    def static(x: np.ndarray) -> np.ndarray:
        return x

    @classmethod
    def of_class(cls, x: np.ndarray) -> np.ndarray:
        return x


@pytest.mark.parametrize("name", ["static", "of_class"])
def test_static_and_class_methods_of_a_lazy_are_nodes_too(name: str) -> None:
    assert graph_of({"y": getattr(LazyObject(Methods), name)})({"x": [1]}).tolist() == [1]


def _line(x: Any, slope: Any = 2, rise: Any = 1, *, sign: Any = 1) -> Any:
    return sign * (slope * x + rise)


class Line:
    """A callable object with state, some of it in a slot."""

    __slots__ = ("rise", "slope")

    def __init__(self, slope: int) -> None:
        self.slope, self.rise = slope, 1

    def __call__(self, x: np.ndarray, *, sign: int = 1) -> np.ndarray:
        return sign * (self.slope * x + self.rise)

    def steep(self, x: np.ndarray, factor: int = 10) -> np.ndarray:
        return factor * self.slope * x


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (_line, [7, 9]),
        (functools.partial(_line, slope=5), [16, 21]),
        (functools.partial(_line, rise=0), [6, 8]),
        (functools.partial(_line, slope=5, rise=0, sign=-1), [-15, -20]),
        (functools.partial(lambda factor, x: factor * x, 4), [12, 16]),
        (functools.partial(functools.partial(_line, slope=5), sign=-1), [-16, -21]),
        (Line(3), [10, 13]),
        (functools.partial(Line(3), sign=-1), [-10, -13]),
        (Line(3).steep, [90, 120]),
        (LazyObject(Line, 3), [10, 13]),
        (LazyObject(Line, 3).steep, [90, 120]),
        (functools.partial(LazyObject(Line, 3).steep, factor=2), [18, 24]),
        (bind_inputs(functools.partial(_line, slope=5), rise="x"), [18, 24]),
        (lambda x, y=3: x * y, [9, 12]),
    ],
)
def test_defaults_partials_and_objects_are_nodes(call: Any, expected: list[int]) -> None:
    graph = graph_of({"y": call})
    assert graph({"x": [3, 4]}).tolist() == expected
    travelled = pickle.loads(cloudpickle.dumps(graph))
    assert travelled({"x": [3, 4]}).tolist() == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (_line, [-16, -40]),
        (functools.partial(_line, slope=5), [-25, -40]),
        (functools.partial(_line, sign=1), [16, 40]),
        (bind_inputs(_line, rise="x"), [-9, -24]),
    ],
)
def test_a_default_gives_way_to_an_input_or_node_of_its_name(
    call: Any, expected: list[int]
) -> None:
    inputs = {name: Array("int64") for name in ("x", "slope", "sign")}
    graph = graph_of({"rise": lambda x: 10 * x - 20, "y": call}, inputs=inputs)
    batch = {"x": [3, 4], "slope": [2, 5], "sign": [-1, -1]}
    assert graph(batch).tolist() == expected


def test_fingerprints_see_what_a_partial_binds_and_the_state_of_an_object() -> None:
    calls = [
        _line, functools.partial(_line, slope=5), functools.partial(_line, slope=6),
        functools.partial(_line, rise=5), Line(3), Line(4), Line(3).steep, Line(4).steep,
        functools.partial(LazyObject(Line, 3), sign=2),
        functools.partial(LazyObject(Line, 4), sign=2),
    ]  # fmt: skip
    fingerprints = [graph_of({"y": call}).fingerprint for call in calls]
    assert len(set(fingerprints)) == len(calls)
    assert graph_of({"y": Line(3)}).fingerprint == graph_of({"y": Line(3)}).fingerprint


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (functools.partial(_line, tilt=2), r"a partial binds \['tilt'\]; .*'sign'\]"),
        (functools.partial(_line, 1, 2, 3, 4), "a partial binds 4 positional arguments"),
    ],
)
def test_a_partial_of_what_is_not_a_parameter_is_refused(call: Any, message: str) -> None:
    with pytest.raises(GraphError, match=f"node 'y': {message}"):
        graph_of({"y": call})


@pytest.mark.parametrize("call", [max, lambda *x: x, lambda **x: x])
def test_a_function_whose_parameters_have_no_place_is_refused(call: Callable[..., Any]) -> None:
    with pytest.raises(GraphError, match="node 'y'"):
        graph_of({"y": call})


def test_map_shows_its_signature_and_keeps_columns() -> None:
    parameters = inspect.signature(Graph.map).parameters
    assert list(parameters)[1:] == [
        "table", "keep", "name", "batch_size", "max_actors", "storage", "path",
    ]  # fmt: skip
    assert "keep: Columns of the table" in (Graph.map.__doc__ or "")
    graph, block = graph_of({"y": double}), pa.table({"id": ["a", "b"], "x": [1, 2]})
    mapped, _ = _Mapper(graph, ["id", "x"], 1, None).run(block)
    assert mapped.to_pydict() == {"id": ["a", "b"], "x": [1, 2], "y": [2, 4]}
    with pytest.raises(DataError, match=r"keep=\['y'\]: outputs of the graph have these names"):
        _Mapper(graph, ["y"], 1, None).run(block.append_column("y", block["x"]))
