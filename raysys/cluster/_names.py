"""Names in the cluster: the namespace of actors and keys, and label selectors of nodes."""

from raysys.ray_internals.key_value import NAMESPACE as NAMESPACE

# For actors that should not be preempted, such as replicas and indexes. Ray's label has the values
# `spot` and `on-demand`; nodes without it, as on a laptop, match too. Tasks without a selector run
# on spot machines first, by the priority of their node types (clusters/README.md).
ON_DEMAND_ONLY: dict[str, str] = {"ray.io/market-type": "!spot"}
