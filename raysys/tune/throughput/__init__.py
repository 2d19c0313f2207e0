"""Tuning of a training's own settings for throughput, cost and loss."""
