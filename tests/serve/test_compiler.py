import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.serve import Array, Graph, Placement
from raysys.serve._compiler import ENTRY, ServingPlan

PLACEMENTS = [None, None, Placement(), Placement(2), Placement(isolated=True)]
MANY = settings(deadline=None, derandomize=True, max_examples=80)


def node(number: int, needs: tuple[str, ...]) -> Callable[..., Any]:
    """A function of these parameters whose value tells which node ran on what."""

    def call(*values: np.ndarray) -> np.ndarray:
        weighted = (factor * value for factor, value in enumerate(values, 2))
        return (number + sum(weighted)) % 1_000_003

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in needs]
    )
    return call


def graph_of(
    needs: dict[str, str], output: str = "y", placement: dict[str, Placement] | None = None
) -> Graph:
    """`{"y": "x p"}` is a node `y` that needs `x` and `p`."""
    nodes = {name: node(n, tuple(text.split())) for n, (name, text) in enumerate(needs.items())}
    inputs = {"x": Array("int64"), "z": Array("int64")}
    return Graph(inputs=inputs, nodes=nodes, output=output, placement=placement)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    names = [f"n{number}" for number in range(draw(st.integers(1, 10)))]
    needs = {}
    for number, name in enumerate(names):
        known = st.sampled_from(["x", "z", *names[:number]])
        needs[name] = " ".join(draw(st.lists(known, min_size=1, max_size=4, unique=True)))
    places = {name: draw(st.sampled_from(PLACEMENTS)) for name in names}
    placement = {name: place for name, place in places.items() if place}
    given_order = {name: needs[name] for name in draw(st.permutations(names))}
    return graph_of(given_order, draw(st.sampled_from(names)), placement)


def ancestors(graph: Graph) -> dict[str, set[str]]:
    """Nodes that each node needs, directly or not."""
    found: dict[str, set[str]] = {}
    for name in graph.order:
        needs = [need for need in graph.nodes[name].needs if need in graph.nodes]
        found[name] = set(needs).union(*(found[need] for need in needs))
    return found


def awaited(plan: ServingPlan) -> Iterator[set[int]]:
    """Steps that have ended before each step starts."""
    known: list[set[int]] = []
    for step in plan.steps:
        known.append(set(step.after).union(*(known[before] for before in step.after)))
        yield known[-1]


@given(graphs())
@MANY
def test_every_needed_node_is_in_one_step_and_one_stage_and_no_other_node_is(graph: Graph) -> None:
    plan = graph.plan
    assert sorted(n for step in plan.steps for n in step.nodes) == sorted(graph.order)
    assert sorted(n for stage in plan.stages.values() for n in stage.nodes) == sorted(graph.order)
    assert all(set(step.nodes) <= set(plan.stages[step.stage].nodes) for step in plan.steps)
    assert all(step.nodes for step in plan.steps)
    assert plan.in_flight == 1 + sum(step.stage != ENTRY for step in plan.steps)


@given(graphs())
@MANY
def test_nodes_share_a_stage_exactly_if_their_placement_is_equal_and_not_isolated(
    graph: Graph,
) -> None:
    stage_of = {n: stage for stage in graph.plan.stages.values() for n in stage.nodes}
    for one in graph.order:
        place = graph.nodes[one].placement
        assert (stage_of[one].name == ENTRY) is (place is None)
        if place is not None:
            assert stage_of[one].placement == place
        for other in graph.order:
            if one != other:
                alone = place is not None and place.isolated
                together = place == graph.nodes[other].placement and not alone
                assert (stage_of[one] is stage_of[other]) is together


@given(graphs(), st.integers(0, 1000))
@MANY
def test_steps_that_see_only_what_they_need_give_what_the_graph_gives(
    graph: Graph, seed: int
) -> None:
    plan, dice = graph.plan, random.Random(seed)
    inputs = {"x": np.array([1, 2, 3]), "z": np.array([40, 50, 60])}
    values, ended = dict(inputs), set[int]()
    while len(ended) < len(plan.steps):
        ready = [
            number
            for number, step in enumerate(plan.steps)
            if number not in ended and ended.issuperset(step.after)
        ]
        number = dice.choice(ready)
        step = plan.steps[number]
        made = graph.run(step.nodes, {need: values[need] for need in step.needs})
        values |= {name: made[name] for name in step.gives}
        ended.add(number)
    expected = graph.run(graph.order, inputs)[graph.output]
    np.testing.assert_array_equal(values[graph.output], expected)
    assert graph.output in plan.steps[-1].gives


@given(graphs())
@MANY
def test_nothing_travels_that_is_not_wanted_and_nothing_twice(graph: Graph) -> None:
    plan = graph.plan
    for number, step in enumerate(plan.steps):
        wanted = {need for n in step.nodes for need in graph.nodes[n].needs} - set(step.nodes)
        assert sorted(step.needs) == sorted(wanted)
        elsewhere = {need for other in plan.steps if other is not step for need in other.needs}
        assert set(step.gives) == set(step.nodes) & (elsewhere | {graph.output})
        assert all(before < number for before in step.after)


@given(graphs())
@MANY
def test_a_node_waits_for_those_of_other_stages_that_it_needs_and_for_no_others(
    graph: Graph,
) -> None:
    needed = ancestors(graph)
    for step, before in zip(graph.plan.steps, awaited(graph.plan), strict=True):
        stage = graph.plan.stages[step.stage]
        waits = {n for other in before for n in graph.plan.steps[other].nodes}
        for name in step.nodes:
            assert waits - set(stage.nodes) == needed[name] - set(stage.nodes)


def test_a_graph_without_placements_is_one_step_in_the_entry() -> None:
    plan = graph_of({"a": "x", "b": "x z", "y": "a b"}).plan
    (step,) = plan.steps
    assert (step.stage, step.needs, step.gives, step.after) == (ENTRY, ("x", "z"), ("y",), ())
    assert plan.in_flight == 1


def test_both_branches_of_a_diamond_run_at_once_if_one_is_elsewhere() -> None:
    needs = {"top": "x", "here": "top", "there": "top", "y": "here there"}
    plan = graph_of(needs, placement={"there": Placement()}).plan
    number = {n: number for number, step in enumerate(plan.steps) for n in step.nodes}
    assert len({number["top"], number["here"], number["there"], number["y"]}) == 4
    before = list(awaited(plan))
    assert before[number["here"]] == before[number["there"]] == {number["top"]}
    assert plan.steps[number["top"]].gives == ("top",)


def test_a_branch_that_needs_nothing_does_not_wait_for_the_other_branchs_start() -> None:
    needs = {"a": "x", "far": "a", "b": "x", "y": "far b"}
    plan = graph_of(needs, placement={"far": Placement()}).plan
    number = {n: number for number, step in enumerate(plan.steps) for n in step.nodes}
    assert plan.steps[number["far"]].after == (number["a"],)
    assert plan.steps[number["a"]].nodes == ("a",)
    assert plan.steps[number["b"]].after == ()


def test_neighbours_of_equal_placement_make_one_hop_and_isolated_ones_two() -> None:
    needs = {"a": "x", "b": "a", "y": "b"}
    fused = graph_of(needs, placement={"a": Placement(gpus=1), "b": Placement(gpus=1)}).plan
    assert [(step.stage, step.nodes) for step in fused.steps] == [
        ("a-b", ("a", "b")), (ENTRY, ("y",)),
    ]  # fmt: skip
    assert fused.steps[0].gives == ("b",)
    alone = Placement(gpus=1, isolated=True)
    isolated = graph_of(needs, placement={"a": alone, "b": alone}).plan
    assert [step.stage for step in isolated.steps] == ["a", "b", ENTRY]
    assert isolated.stages["a"].reason == "isolated"


def test_an_output_that_is_placed_leaves_the_entry_without_nodes() -> None:
    plan = graph_of({"y": "x"}, placement={"y": Placement()}).plan
    assert plan.stages[ENTRY].nodes == ()
    assert [step.stage for step in plan.steps] == ["y"]


def test_placed_nodes_that_the_output_does_not_need_get_no_deployment() -> None:
    plan = graph_of({"y": "x", "stale": "x"}, placement={"stale": Placement()}).plan
    assert list(plan.stages) == [ENTRY]


def test_a_placed_node_may_be_called_like_the_entry() -> None:
    plan = graph_of({ENTRY: "x", "y": ENTRY}, placement={ENTRY: Placement()}).plan
    assert sorted(n for stage in plan.stages.values() for n in stage.nodes) == [ENTRY, "y"]
