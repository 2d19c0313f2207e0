"""Model store on MLflow, loaders of the models in it, and ensembles of stored models."""

from raysys.models._combiners import LogisticBlend
from raysys.models._ensemble import Ensemble, EnsembleMember, StoredEnsemble
from raysys.models._model_store import ModelStore, StoredModel
from raysys.models._predict import predict, signature_of
from raysys.models._predictor import ModelFiles, Predictor
from raysys.models._saving import load, save
from raysys.models._stored_estimator import StoredEstimator, estimator_signature, save_estimator

__all__ = [
    "Ensemble",
    "EnsembleMember",
    "LogisticBlend",
    "ModelFiles",
    "ModelStore",
    "Predictor",
    "StoredEnsemble",
    "StoredEstimator",
    "StoredModel",
    "estimator_signature",
    "load",
    "predict",
    "save",
    "save_estimator",
    "signature_of",
]
