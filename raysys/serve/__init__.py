"""Serving: a graph of batch functions, called in-process, mapped over a Table, put behind HTTP."""

from raysys.serve._autoscaling import Scale
from raysys.serve._batcher import Batching, RequestContext, current_requests
from raysys.serve._column_types import Array
from raysys.serve._deploy import deploy, shutdown, undeploy
from raysys.serve._endpoint import Endpoint
from raysys.serve._graph import Graph
from raysys.serve._index_application import IndexSearch, index_graphs
from raysys.serve._model_nodes import ModelPool, from_store
from raysys.serve._nodes import Lazy, Placement, using

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
    "current_requests",
    "deploy",
    "from_store",
    "index_graphs",
    "shutdown",
    "undeploy",
    "using",
]
