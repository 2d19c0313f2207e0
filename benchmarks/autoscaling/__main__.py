"""`python -m benchmarks.autoscaling`: nodes and replicas come with the load and go with it.

Clusters are Ray's own autoscaler and nodes on this machine; only their hardware is pretended.
"""

from benchmarks._figures import run
from benchmarks.autoscaling import jobs, nodes, serving
from raysys.cluster import enable_token_auth

if __name__ == "__main__":
    enable_token_auth()
    run(__doc__, nodes.measure, serving.measure, jobs.measure)
