"""The private interfaces that raysys uses stand where they stood in the Ray that was checked."""

import importlib
import inspect
import operator

import pytest
import ray

from raysys.ray_internals import CHECKED_RAY, key_value, process, serialization

# By module: attribute, and parameters that are passed or patched.
INTERFACES = {
    "ray._private.worker": {
        "WORKER_MODE": None, "global_worker": None, "Worker.placement_group_id": None,
        "_worker_logs_enabled": None,
    },
    "ray._private.state": {"state.job_table": (), "available_resources_per_node": None},
    "ray._private.internal_api": {"get_memory_info_reply": ("state",)},
    "ray._private.serialization": {
        "SerializationContext.deserialize_objects":
            ("self", "serialized_ray_objects", "object_refs", "rdt_objects"),
    },
    "ray._private.ray_constants": {
        "DASHBOARD_ADDRESS": None, "KV_NAMESPACE_DASHBOARD": None, "KV_NAMESPACE_CLUSTER": None,
    },
    "ray._private.runtime_env.packaging": {
        "_get_excludes": ("path", "excludes"), "GCS_STORAGE_MAX_SIZE": None,
        "_dir_travel": ("path", "excludes", "handler", "include_gitignore", "logger"),
    },
    "ray._common.usage.usage_constants": {"CLUSTER_METADATA_KEY": None},
    "ray._raylet": {"Config.initialize": None},
    "ray.cloudpickle": {
        "dumps": ("obj", "protocol", "buffer_callback"), "Pickler.reducer_override": None,
    },
    "ray.experimental.internal_kv": {
        "_internal_kv_put": ("key", "value", "overwrite", "namespace"),
        "_internal_kv_get": ("key", "namespace"),
        "_internal_kv_del": ("key", "del_by_prefix", "namespace"),
        "_internal_kv_list": ("prefix", "namespace"),
    },
    "ray.train.torch": {
        "TorchTrainer._initialize_and_run_controller": None, "TorchTrainer.__init__": None,
    },
    "ray.train.v2._internal.execution.controller.state": {"ReschedulingState": None},
    "ray.train.v2._internal.execution.scaling_policy": {
        "ElasticScalingPolicy._get_resize_decision": ("num_workers",),
        "ElasticScalingPolicy._maybe_send_resource_request": None,
        "ElasticScalingPolicy.before_controller_execute_resize_decision": ("resize_decision",),
        "ElasticScalingPolicy.after_controller_state_update": ("previous_state", "current_state"),
        "ElasticScalingPolicy.make_decision_for_non_running_worker_group": None,
        "ElasticScalingPolicy.make_decision_for_running_worker_group":
            ("worker_group_state", "worker_group_status"),
    },
    "ray.autoscaler._private.util": {
        "prepare_config": ("config",), "validate_config": ("config",),
    },
}  # fmt: skip


def test_ray_is_the_release_that_was_checked() -> None:
    assert ray.__version__.startswith(f"{CHECKED_RAY}."), (
        f"Ray {ray.__version__}: check raysys/ray_internals against it, then set CHECKED_RAY"
    )


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in INTERFACES for name in INTERFACES[module]]
)
def test_a_private_interface_of_ray_is_in_its_place(module: str, name: str) -> None:
    parameters = INTERFACES[module][name]
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        pytest.fail(f"Ray {ray.__version__} moved {module}.{name}, which raysys uses: {error}")
    if parameters:
        has = tuple(inspect.signature(found).parameters)
        missing = [parameter for parameter in parameters if parameter not in has]
        assert not missing, f"Ray {ray.__version__}: {module}.{name} takes {has}, without {missing}"


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_knows_that_it_ends_with_its_driver() -> None:
    assert key_value.ends_with_its_driver()
    assert ray.get(ray.remote(key_value.ends_with_its_driver).remote())


@pytest.mark.usefixtures("ray_cluster")
def test_the_key_value_store_writes_once_without_overwriting() -> None:
    assert key_value.put(b"internals:a", b"1", overwrite=False)
    assert not key_value.put(b"internals:a", b"2", overwrite=False)
    assert key_value.get(b"internals:a") == b"1"
    key_value.put(b"internals:a", b"3")
    assert key_value.get(b"internals:a") == b"3"
    assert key_value.keys(b"internals:") == [b"internals:a"]
    key_value.delete(b"internals:", by_prefix=True)
    assert key_value.get(b"internals:a") is None


@pytest.mark.usefixtures("ray_cluster")
def test_the_process_is_a_driver_of_a_live_job() -> None:
    assert not process.is_worker()
    assert ray.get_runtime_context().get_job_id() in process.live_jobs()
    assert process.session_folder().is_dir()
    assert ray.get(ray.remote(process.is_worker).remote())


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_put_is_counted() -> None:
    before = serialization.created_bytes()
    ray.put(bytes(1 << 20))
    after = serialization.created_bytes()
    assert before is not None
    assert after is not None
    assert after - before >= 1 << 20
