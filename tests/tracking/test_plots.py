import io

import matplotlib.image as image
import pytest

from raysys.tracking import plots

POINTS = [{"cost": 1.0, "loss": 3.0}, {"cost": 2, "loss": 2.0}, {"cost": 3, "loss": None}]


@pytest.mark.parametrize(
    "png",
    [
        plots.curves("c", {"a": [3, 2, 1], "b": [1.0]}),
        plots.bars("b", {"x": {"auc": 0.5, "ap": 0.2}, "y": {"auc": 0.6, "ap": 0.3}}),
        plots.panels("p", {"loss": {"a": ([1, 2], [0.5, 0.1])}, "auc": {"a": ([1], [0.1])}}),
        plots.front("f", POINTS, "cost", "loss", POINTS[:1]),
        plots.front("nothing yet", [], "cost", "loss", []),
    ],
    ids=["curves", "bars", "panels", "front", "empty front"],
)
def test_a_plot_is_a_png_that_shows_something(png: bytes) -> None:
    pixels = image.imread(io.BytesIO(png), format="png")
    assert pixels.shape[1] == 7 * 120
    assert pixels.std() > 0.01


def test_the_front_is_marked_in_another_colour() -> None:
    def red(chosen: list[dict[str, float | None]]) -> int:
        png = plots.front("f", POINTS, "cost", "loss", chosen)
        pixels = image.imread(io.BytesIO(png), format="png")
        return int(((pixels[..., 0] > 0.7) & (pixels[..., 1] < 0.3)).sum())

    assert red(POINTS[:2]) > red([]) + 100  # the legend shows a mark in both
