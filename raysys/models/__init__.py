"""Stored models, kept by MLflow: single ones, and several as one."""

from raysys.models._blend_weights import LogisticBlend
from raysys.models._ensemble import Ensemble, Member, StoredEnsemble
from raysys.models._estimator import StoredEstimator, estimator_signature, save_estimator
from raysys.models._predictions import answers
from raysys.models._store import ModelStore, StoredModel

__all__ = [
    "Ensemble",
    "LogisticBlend",
    "Member",
    "ModelStore",
    "StoredEnsemble",
    "StoredEstimator",
    "StoredModel",
    "answers",
    "estimator_signature",
    "save_estimator",
]
