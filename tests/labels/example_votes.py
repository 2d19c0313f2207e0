"""Votes of labelers with known accuracies."""

import numpy as np

from raysys.labels._labelers import VotePatterns


def patterns(votes: np.ndarray, gold: np.ndarray | None = None) -> VotePatterns:
    """Patterns of votes `(rows, labelers)`, -1 for abstaining."""
    labels = np.full(len(votes), -1, np.int8) if gold is None else gold.astype(np.int8)
    columns, rows = np.unique(np.column_stack([votes, labels]), axis=0, return_counts=True)
    names = tuple(f"labeler_{number}" for number in range(votes.shape[1]))
    return VotePatterns(names, columns[:, :-1], rows, columns[:, -1])


def all_classes(
    y: np.ndarray, accuracies: list[float], classes: int, coverage: float, seed: int
) -> np.ndarray:
    """Votes of labelers of all classes with these accuracies."""
    rng = np.random.default_rng(seed)
    columns = []
    for accuracy in accuracies:
        wrong = (y + rng.integers(1, classes, len(y))) % classes
        vote = np.where(rng.random(len(y)) < accuracy, y, wrong)
        columns.append(np.where(rng.random(len(y)) < coverage, vote, -1))
    return np.stack(columns, axis=1).astype(np.int8)


def one_sided(y: np.ndarray, rates: list[tuple[int, float, float]], seed: int) -> np.ndarray:
    """Votes of labelers of one class, at these rates on its rows and on other rows."""
    rng = np.random.default_rng(seed)
    columns = [
        np.where(rng.random(len(y)) < np.where(y == vote, right, wrong), vote, -1)
        for vote, right, wrong in rates
    ]
    return np.stack(columns, axis=1).astype(np.int8)


def majority(votes: np.ndarray, classes: int, seed: int = 0) -> np.ndarray:
    """Majority votes, with ties broken at random."""
    counts = np.stack([(votes == number).sum(axis=1) for number in range(classes)], axis=1)
    return (counts + np.random.default_rng(seed).random(counts.shape) / 2).argmax(axis=1)
