"""Search for settings on Ray Tune: random, grid, Bayesian, BOHB, population-based training."""

from raysys.tune._found import Found
from raysys.tune._report import Report
from raysys.tune._search import search
from raysys.tune._searchers import Grid, Population, Searcher
from raysys.tune._space import Choice, Float, Integer, Space
from raysys.tune._throughput import throughput
from raysys.tune._throughput_choice import Tried
from raysys.tune._throughput_found import Throughput
from raysys.tune._training import training
from raysys.tune._trial import Goal, Trial

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
    "throughput",
    "training",
]
