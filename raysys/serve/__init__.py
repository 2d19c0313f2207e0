"""Serving: a graph of batch functions, written once, called in-process or put behind HTTP."""

from raysys.serve._deploy import Endpoint, deploy
from raysys.serve._graph import Batch, Graph

__all__ = ["Batch", "Endpoint", "Graph", "deploy"]
