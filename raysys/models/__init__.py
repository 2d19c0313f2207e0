"""Stored models and the record of runs, kept by MLflow."""

from raysys.models._store import ModelStore, StoredModel, TrackedRun

__all__ = ["ModelStore", "StoredModel", "TrackedRun"]
