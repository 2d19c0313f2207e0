"""Readers of CSV, JSON lines, Parquet and Arrow files."""
