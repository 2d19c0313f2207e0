"""Checks of a cluster's configuration files."""
