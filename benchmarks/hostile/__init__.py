"""Hostile requests, and what they cost the other clients."""
