"""Measures of ranked answers against what people chose."""

from raysys.evaluate._ranking import ndcg, recall, top_k

__all__ = ["ndcg", "recall", "top_k"]
