"""Faults, on purpose."""
