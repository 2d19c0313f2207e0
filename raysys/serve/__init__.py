"""Serving: a graph of batch functions, called in-process, mapped over a Table, put behind HTTP."""

from raysys.serve._batcher import Batching, RequestContext, current_requests
from raysys.serve._deploy import deploy, shutdown, undeploy
from raysys.serve._endpoint import Endpoint
from raysys.serve._graph import Graph
from raysys.serve._index import IndexSearch, index_graphs
from raysys.serve._keys import create_key, read_keys, revoke_key
from raysys.serve._lazy import Lazy, Placement, using
from raysys.serve._scale import Scale
from raysys.serve._stored import ModelPool, from_store
from raysys.serve._types import Array

__all__ = [
    "Array",
    "Batching",
    "Endpoint",
    "Graph",
    "IndexSearch",
    "Lazy",
    "ModelPool",
    "Placement",
    "RequestContext",
    "Scale",
    "create_key",
    "current_requests",
    "deploy",
    "from_store",
    "index_graphs",
    "read_keys",
    "revoke_key",
    "shutdown",
    "undeploy",
    "using",
]
