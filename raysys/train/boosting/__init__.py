"""Gradient boosting by xgboost-ray on a Table's blocks."""
