"""Lines of `raysys status`, from the dashboard's responses."""

from raysys.cluster import _status as status

GIB = 1 << 30


def test_nodes_are_listed_with_usage_and_the_head_first() -> None:
    nodes = [
        {"node_id": "b2", "node_ip": "10.0.0.1", "is_head_node": False, "state": "ALIVE",
         "resources_total": {"CPU": 8.0, "GPU": 2.0, "memory": 32.0 * GIB}},
        {"node_id": "a1", "node_ip": "10.0.0.9", "is_head_node": True, "state": "ALIVE",
         "resources_total": {"CPU": 2.0, "object_store_memory": 4.0 * GIB}},
        {"node_id": "c3", "node_ip": "10.0.0.2", "is_head_node": False, "state": "DEAD",
         "resources_total": {"CPU": 8.0}},
    ]  # fmt: skip
    usage = {
        "a1": {"CPU": [1.0, 2.0], "objectStoreMemory": [1.0 * GIB, 4.0 * GIB]},
        "b2": {"CPU": [0.5, 8.0], "GPU": [1.0, 2.0]},
    }
    assert status.node_lines(nodes, usage) == [
        "nodes: 2, 1 dead; used 1.5/10 CPUs, 1/2 GPUs, 0.0/32.0 GiB memory, "
        "1.0/4.0 GiB object store",
        "  10.0.0.9 (head): 1/2 CPUs, 1.0/4.0 GiB object store",
        "  10.0.0.1: 0.5/8 CPUs, 1/2 GPUs, 0.0/32.0 GiB memory",
    ]


def test_pending_demands_are_counted() -> None:
    load = {
        "resourceDemand": [[{"CPU": 1.0}, 3], [{"CPU": 2.0, "GPU": 1.0}, 1]],
        "pgDemand": [[{"strategy": "PACK", "bundles": [[{"GPU": 1.0}, 4]]}, 2]],
    }
    assert status.pending_lines(load) == [
        "pending demands:",
        "  3 x 1 CPU",
        "  1 x 2 CPU 1 GPU",
        "  2 x placement group (PACK) of 4 x 1 GPU",
    ]
    assert status.pending_lines({}) == ["pending demands: none"]


def test_applications_are_listed_with_their_replicas() -> None:
    replicas = [{"state": "RUNNING"}, {"state": "RUNNING"}, {"state": "STARTING"}]
    applications = {
        "films-v3": {
            "status": "RUNNING",
            "deployments": {
                "entry": {"replicas": replicas, "target_num_replicas": 3},
                "model": {"replicas": [], "target_num_replicas": 1},
            },
        }
    }
    assert status.application_lines(applications) == [
        "applications:",
        "  films-v3: RUNNING; entry 2 running, 1 starting (target 3); model no replicas (target 1)",
    ]
    assert status.application_lines({}) == ["applications: none"]


def test_indexes_are_listed_by_their_actors() -> None:
    names = [
        "index:films:0.0",
        "index:films:0.1",
        "index:films:1.0",
        "index:a:b:0.0",
        "other",
        None,
    ]
    assert status.index_lines([{"name": name} for name in names]) == [
        "indexes:",
        "  a:b: 1 shards, 1 replicas",
        "  films: 2 shards, 3 replicas",
    ]
    assert status.index_lines([]) == ["indexes: none"]


def test_ended_jobs_are_omitted() -> None:
    jobs = [
        {"submission_id": "a-1", "job_id": None, "status": "RUNNING", "entrypoint": "python -m a"},
        {"submission_id": None, "job_id": "02", "status": "RUNNING", "entrypoint": "python"},
        {"submission_id": "b-1", "job_id": None, "status": "FAILED", "entrypoint": "python -m b"},
    ]
    assert status.job_lines(jobs) == [
        "active jobs:",
        "  a-1: RUNNING, python -m a",
        "  driver 02: RUNNING, python",
    ]
