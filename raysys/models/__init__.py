"""Model store on MLflow, scikit-learn estimators in it, and ensembles of stored models."""

from raysys.models._combiners import LogisticBlend
from raysys.models._ensemble import Ensemble, EnsembleMember, StoredEnsemble
from raysys.models._model_store import ModelStore, StoredModel
from raysys.models._predict import predict
from raysys.models._stored_estimator import StoredEstimator, estimator_signature, save_estimator

__all__ = [
    "Ensemble",
    "EnsembleMember",
    "LogisticBlend",
    "ModelStore",
    "StoredEnsemble",
    "StoredEstimator",
    "StoredModel",
    "estimator_signature",
    "predict",
    "save_estimator",
]
