"""Names in the cluster: the namespace of actors and keys, and label selectors of nodes."""

from raysys.ray_internals.key_value import NAMESPACE as NAMESPACE

# For what must not lose its machine, such as replicas and indexes. Ray's own label has the values
# `spot` and `on-demand`; nodes without it, as on a laptop, match too. Work without a selector goes
# to spot machines first, by the priority of their node types (clusters/README.md).
ON_DEMAND_ONLY: dict[str, str] = {"ray.io/market-type": "!spot"}
