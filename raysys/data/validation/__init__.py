"""Schemas, validation rules and quarantine."""
