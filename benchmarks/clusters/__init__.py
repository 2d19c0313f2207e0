"""Clusters of several nodes on one machine, for benchmarks and tests."""

from benchmarks.clusters._autoscaling import AutoscalingCluster, NodeType

__all__ = ["AutoscalingCluster", "NodeType"]
