import json
import math

import pytest

from raysys.errors import RaysysError
from raysys.tune import Choice, Float, Integer, Space
from raysys.tune._space import check_settings, grid, of_json

SPACE: Space = {
    "rate": Float(1e-3, 1e-1, log=True),
    "depth": Integer(2, 6),
    "shape": Choice(((1, 2), (3, 4))),
}


def test_points_of_a_range_hit_its_ends_and_lie_at_even_distances() -> None:
    assert Float(0.0, 3.0).points(4) == [0.0, 1.0, 2.0, 3.0]
    assert Integer(2, 6).points(3) == [2, 4, 6]
    assert Integer(1, 2).points(5) == [1, 2]
    low, middle, high = Float(1e-3, 1e-1, log=True).points(3)
    assert (low, high) == (1e-3, 1e-1)
    assert math.isclose(middle, 1e-2)


def test_a_grid_has_each_combination_once() -> None:
    cells = [tuple(cell.values()) for cell in grid(SPACE, 3)]
    assert len(cells) == len(set(cells)) == 3 * 3 * 2


def test_settings_come_back_from_json_as_they_were() -> None:
    settings = {"rate": 1e-2, "depth": 3, "shape": (3, 4)}
    assert of_json(SPACE, json.loads(json.dumps(settings))) == settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"dept": 3}, "'dept'"), ({"depth": 7}, "depth = 7"), ({"shape": (1, 3)}, "shape")],
)
def test_settings_outside_the_space_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(RaysysError, match=said):
        check_settings("defaults", settings, SPACE)


@pytest.mark.parametrize("make", [lambda: Float(2, 1), lambda: Float(0, 1, log=True)])
def test_an_impossible_range_is_refused(make: type) -> None:
    with pytest.raises(RaysysError, match="give low"):
        make()
