"""Search for settings on Ray Tune: random, grid, Bayesian, BOHB, population-based training."""

from raysys.tune._search import search
from raysys.tune._search_result import Found
from raysys.tune._searchers import Grid, Population, Searcher
from raysys.tune._space import Choice, Float, Integer, Space
from raysys.tune._training_objective import training
from raysys.tune._trial import Goal, Trial
from raysys.tune._trial_process import Report
from raysys.tune.throughput._decisions import Tried
from raysys.tune.throughput._result import Throughput
from raysys.tune.throughput._throughput import tune_throughput

__all__ = [
    "Choice",
    "Float",
    "Found",
    "Goal",
    "Grid",
    "Integer",
    "Population",
    "Report",
    "Searcher",
    "Space",
    "Throughput",
    "Trial",
    "Tried",
    "search",
    "training",
    "tune_throughput",
]
