"""Checks for information that leaks into training data."""
