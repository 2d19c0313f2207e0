"""Samples, splits and class balance."""
