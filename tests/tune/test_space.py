import json
import math

import pytest

from raysys.errors import RaysysError
from raysys.tune import Choice, Float, Integer, Space
from raysys.tune._space import check_params, grid, params_from_json

SPACE: Space = {
    "rate": Float(1e-3, 1e-1, log=True),
    "depth": Integer(2, 6),
    "shape": Choice(((1, 2), (3, 4))),
}


def test_points_of_a_range_include_its_ends_and_are_evenly_spaced() -> None:
    assert Float(0.0, 3.0).points(4) == [0.0, 1.0, 2.0, 3.0]
    assert Integer(2, 6).points(3) == [2, 4, 6]
    assert Integer(1, 2).points(5) == [1, 2]
    low, middle, high = Float(1e-3, 1e-1, log=True).points(3)
    assert (low, high) == (1e-3, 1e-1)
    assert math.isclose(middle, 1e-2)


def test_a_grid_has_every_combination_once() -> None:
    cells = [tuple(cell.values()) for cell in grid(SPACE, 3)]
    assert len(cells) == len(set(cells)) == 3 * 3 * 2


def test_params_survive_json() -> None:
    params = {"rate": 1e-2, "depth": 3, "shape": (3, 4)}
    assert params_from_json(SPACE, json.loads(json.dumps(params))) == params


@pytest.mark.parametrize(
    ("params", "message"),
    [({"dept": 3}, "'dept'"), ({"depth": 7}, "depth = 7"), ({"shape": (1, 3)}, "shape")],
)
def test_params_outside_the_space_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(RaysysError, match=message):
        check_params("enqueue", params, SPACE)


@pytest.mark.parametrize("make", [lambda: Float(2, 1), lambda: Float(0, 1, log=True)])
def test_an_impossible_range_is_refused(make: type) -> None:
    with pytest.raises(RaysysError, match="give low"):
        make()
