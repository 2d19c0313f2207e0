"""Hyperparameter search on Ray Tune: Bayesian search with early stopping."""

from raysys.tune._search import Found, Report, Space, search
from raysys.tune._space import Choice, Float, Integer
from raysys.tune._training import training

__all__ = ["Choice", "Float", "Found", "Integer", "Report", "Space", "search", "training"]
