"""Searches beside a full grid, and beside what one would write by hand."""
