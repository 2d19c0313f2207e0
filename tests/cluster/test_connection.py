import pytest

from raysys.cluster import require, resources
from raysys.errors import ResourceError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_demand_within_the_headroom_is_accepted() -> None:
    require("training", cpus=resources().cpus - 1)


def test_a_demand_beyond_the_headroom_is_rejected_with_both_numbers() -> None:
    have = resources().cpus
    with pytest.raises(ResourceError) as refused:
        require("training", cpus=have - 0.5)
    assert f"training needs {have - 0.5:g} CPUs beside 1 reserved for tasks" in str(refused.value)
    assert f"the cluster has {have:g} CPUs" in str(refused.value)


def test_a_demand_for_missing_gpus_is_rejected() -> None:
    have = resources().gpus
    with pytest.raises(ResourceError, match=f"{have + 1:g} GPUs; .* and {have:g} GPUs"):
        require("training", cpus=1, gpus=have + 1)
