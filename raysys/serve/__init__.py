"""Graphs of batch functions, called in-process, mapped over a Table, deployed behind HTTP."""

from raysys.serve._autoscaling import Autoscaling
from raysys.serve._batching import Batching
from raysys.serve._column_types import Array
from raysys.serve._deploy import GatewayOptions, HTTPOptions, deploy, shutdown, undeploy
from raysys.serve._endpoint import Endpoint
from raysys.serve._graph import Graph
from raysys.serve._index_application import IndexSearch, index_graphs
from raysys.serve._model_nodes import LazyModel, LazyPredictor, ModelPool
from raysys.serve._nodes import LazyObject, Placement, bind_inputs
from raysys.serve._request_context import RequestContext, current_requests

__all__ = [
    "Array",
    "Autoscaling",
    "Batching",
    "Endpoint",
    "GatewayOptions",
    "Graph",
    "HTTPOptions",
    "IndexSearch",
    "LazyModel",
    "LazyObject",
    "LazyPredictor",
    "ModelPool",
    "Placement",
    "RequestContext",
    "bind_inputs",
    "current_requests",
    "deploy",
    "index_graphs",
    "shutdown",
    "undeploy",
]
