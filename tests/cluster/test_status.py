"""Lines of `raysys status`, from the dashboard's responses."""

from datetime import datetime

from raysys.cluster import _status as status
from raysys.cluster._request_counts import request_counts

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
        "nodes: 2, 1 dead; used 1.5/10 logical CPUs, 1/2 GPUs, 0.0/32.0 GiB memory, "
        "1.0/4.0 GiB object store",
        "  10.0.0.9 (head): 1/2 logical CPUs, 1.0/4.0 GiB object store",
        "  10.0.0.1: 0.5/8 logical CPUs, 1/2 GPUs, 0.0/32.0 GiB memory",
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


METRICS = """
# HELP ray_raysys_serve_requests_total Requests by status class
ray_raysys_serve_requests_total{WorkerId="1",application="films",code="2xx"} 110.0
ray_raysys_serve_requests_total{WorkerId="2",application="films",code="2xx"} 4.0
ray_raysys_serve_requests_total{WorkerId="1",application="films",code="4xx"} 3.0
ray_raysys_serve_requests_total{WorkerId="1",application="films",code="5xx"} 1.0
ray_raysys_serve_requests_total{WorkerId="1",application="",code="4xx"} 9.0
ray_raysys_serve_shed_total{WorkerId="1",application="films",by="gateway"} 2.0
ray_raysys_serve_shed_total{WorkerId="3",application="films",by="replica"} 1.0
ray_raysys_serve_replicas{WorkerId="1",application="films"} 2.0
"""


def test_requests_are_counted_over_processes_and_with_those_that_the_gateway_shed() -> None:
    counts = request_counts([METRICS, "ray_node_cpu_count{} 2.0"])
    assert counts == {"films": {"2xx": 114, "4xx": 3, "5xx": 3}, "": {"4xx": 9}}
    assert request_counts(["ray_node_cpu_count{} 2.0"]) is None


def test_applications_are_listed_with_replicas_models_and_failed_requests() -> None:
    replicas = [{"state": "RUNNING"}, {"state": "RUNNING"}, {"state": "STARTING"}]
    config = {"user_config": {"models": ["tower v7", "ranker v2"]}}
    deployments = {
        "entry": {"replicas": replicas, "target_num_replicas": 3, "deployment_config": config},
        "model": {"replicas": [], "target_num_replicas": 1, "deployment_config": {}},
    }
    moment = datetime(2026, 11, 22, 9, 30).timestamp()
    applications = {
        "films-v3": {
            "status": "RUNNING", "last_deployed_time_s": moment, "deployments": deployments,
        },
        "quiet-v1": {"status": "DEPLOYING", "last_deployed_time_s": moment},
    }  # fmt: skip
    films = (
        "  films-v3: RUNNING since 2026-11-22 09:30; entry 2 running, 1 starting (target 3); "
        "model no replicas (target 1); models tower v7, ranker v2"
    )
    quiet = "  quiet-v1: DEPLOYING since 2026-11-22 09:30"
    assert status.application_lines(applications, request_counts([METRICS])) == [
        "applications:",
        f"{films}; 6 of 120 requests failed (3 4xx, 3 5xx)",
        f"{quiet}; 0 requests, none failed",
        "  numbers of requests: up to 15 s old",
    ]
    *lines, unknown = status.application_lines(applications, None)
    assert lines == ["applications:", films, quiet]
    assert unknown.startswith("  numbers of requests: unknown")
    assert status.application_lines({}, None) == ["applications: none"]


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
