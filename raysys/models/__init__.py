"""Stored models, kept by MLflow."""

from raysys.models._store import ModelStore, StoredModel

__all__ = ["ModelStore", "StoredModel"]
