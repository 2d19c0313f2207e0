import pytest

from raysys.cluster import require, resources
from raysys.errors import ResourceError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_demand_that_leaves_the_head_room_free_is_accepted() -> None:
    require("training", cpus=resources().cpus - 1)


def test_a_demand_that_takes_the_head_room_is_refused_with_both_numbers() -> None:
    have = resources().cpus
    with pytest.raises(ResourceError) as refused:
        require("training", cpus=have - 0.5)
    assert f"training needs {have - 0.5:g} CPUs beside 1 kept free" in str(refused.value)
    assert f"the cluster has {have:g} CPUs" in str(refused.value)


def test_a_demand_for_gpus_that_are_not_there_is_refused() -> None:
    have = resources().gpus
    with pytest.raises(ResourceError, match=f"{have + 1:g} GPUs; .* and {have:g} GPUs"):
        require("training", cpus=1, gpus=have + 1)
