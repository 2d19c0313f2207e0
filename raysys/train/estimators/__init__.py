"""Estimators with a fit method: fitting, cross-validation, joblib and bootstrap on the cluster."""
