"""Hyperparameter search on Ray Tune, and tuning of a training's throughput."""

from raysys.tune._objectives import Direction, Objectives
from raysys.tune._search import search
from raysys.tune._search_result import SearchResult
from raysys.tune._search_settings import Grid, Population, Sampler, SearchLimits, TrialResources
from raysys.tune._space import Choice, Float, Integer, Space
from raysys.tune._successive_halving import TrialScheduler
from raysys.tune._trial import Trial
from raysys.tune._trial_process import TrialReporter, training
from raysys.tune.throughput._result import ThroughputResult, ThroughputTrial
from raysys.tune.throughput._throughput import tune_throughput

__all__ = [
    "Choice",
    "Direction",
    "Float",
    "Grid",
    "Integer",
    "Objectives",
    "Population",
    "Sampler",
    "SearchLimits",
    "SearchResult",
    "Space",
    "ThroughputResult",
    "ThroughputTrial",
    "Trial",
    "TrialReporter",
    "TrialResources",
    "TrialScheduler",
    "search",
    "training",
    "tune_throughput",
]
