"""Measures of ranked answers against what people chose."""

from raysys.evaluate._ranking import ndcg, recall

__all__ = ["ndcg", "recall"]
