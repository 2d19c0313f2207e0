import pytest

from raysys.cluster import require, resources
from raysys.errors import ResourceError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_resources_are_those_of_the_cluster() -> None:
    assert (resources().cpus, resources().nodes) == (5, 1)


def test_a_demand_that_leaves_the_head_room_free_is_accepted() -> None:
    require("training", cpus=4)


def test_a_demand_that_takes_the_head_room_is_refused_with_both_numbers() -> None:
    message = r"^training needs 4\.5 CPUs beside 1 kept free .* the cluster has 5 CPUs"
    with pytest.raises(ResourceError, match=message):
        require("training", cpus=4.5)


def test_a_demand_for_gpus_that_are_not_there_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"and 64 GPUs; the cluster has 5 CPUs and \d+ GPUs"):
        require("training", cpus=1, gpus=64)
