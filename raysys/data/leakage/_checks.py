"""The checks of a leak report; each returns findings."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.data._order_statistics import count_groups, value_of
from raysys.data._row_numbers import each_block
from raysys.data.leakage._bins import LeakBins, make_bins
from raysys.data.leakage._column_power import (
    CHANCE_SIGMAS,
    Label,
    joint_counts,
    kolmogorov_smirnov,
    predictive_power,
    stability_index,
    transferred_power,
)
from raysys.data.leakage._report import LeakFinding, LeakLimits
from raysys.data.leakage._shared_rows import RowComparison, SharedRows, shared_rows
from raysys.data.sampling._split import time_key
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from raysys.data._table import Table
    from raysys.data.sampling._split import Splits

stats = lazy_import("scipy.stats")

# Kolmogorov's 0.1 % point: smaller distances of samples, in units of the square root of
# (1/n + 1/m), are chance (Smirnov, 1948).
_KS_CHANCE = 1.95
_CHANCE = 0.001


def rows_and_categories(
    splits: Splits,
    keys: Sequence[str],
    features: Sequence[str],
    categories: Sequence[str],
    limits: LeakLimits,
) -> tuple[list[LeakFinding], list[str]]:
    """Rows that are in two splits, and categories that the training split lacks."""
    tables, training = splits.original, splits.training
    columns = tuple(keys or features)
    comparisons = [
        RowComparison(columns, missing=not keys), *(RowComparison((name,)) for name in categories)
    ]  # fmt: skip
    comparisons = [comparison for comparison in comparisons if comparison.columns]
    if not comparisons:
        return [], ["no rows, since there are neither keys nor features"]
    shared = shared_rows(tables, comparisons)
    done = [f"{sum(len(t) for t in tables.values())} rows by {', '.join(columns)}"]
    findings = []
    for a, b in itertools.combinations(tables, 2):
        if overlap := shared.get((0, a, b)):
            findings.append(_shared(a, b, overlap, len(tables[b]), bool(keys), columns))
    for number, name in enumerate(categories, start=1):
        for split, table in splits.evaluation.items():
            overlap = shared.get((number, training, split))
            seen = overlap.rows if overlap else 0
            missing = sum(table.gather(_missing, name, name="leaks_missing"))
            unseen = len(table) - missing - seen
            fraction = unseen / max(len(table), 1)
            if fraction > limits.unseen_fraction:
                findings.append(LeakFinding(
                    "unseen categories", False, name, (training, split), fraction,
                    f"{fraction:.1%} of the rows of {split} ({unseen}) have a {name} that no row "
                    f"of {training} has",
                    "Split so that training sees them, or give unknown values a code of their own",
                ))  # fmt: skip
    return findings, done


def time_order(tables: Mapping[str, Table], column: str) -> list[LeakFinding]:
    """Splits that do not end before the next one starts."""
    calls = {name: each_block(table, "leaks_time") for name, table in tables.items() if len(table)}
    key = functools.partial(time_key, column=column)
    spans = {name: count_groups(call, key)[0] for name, call in calls.items()}
    kind, findings = next(iter(tables.values())).schema.field(column).type, []
    for earlier, later in itertools.combinations(calls, 2):
        first, last = spans[later].low, spans[earlier].high
        if first >= last:
            continue
        late = sum(calls[earlier](_beyond, column, first, True))
        early = sum(calls[later](_beyond, column, last, False))
        findings.append(LeakFinding(
            "time order", True, column, (earlier, later), float(early),
            f"{early} rows of {later} are before the last of {earlier} ({value_of(last, kind)}), "
            f"and {late} of {earlier} after the first of {later} ({value_of(first, kind)})",
            "Split with split_by_time, or name the splits in the order of time",
        ))  # fmt: skip
    return findings


def _beyond(block: pa.Table, first: int, column: str, limit: int, after: bool) -> int:
    keys = time_key(block, first, column)
    return int((keys > np.uint64(limit) if after else keys < np.uint64(limit)).sum())


def fitted_beyond(splits: Splits, fitted: Any) -> LeakFinding | None:
    """A fit on anything except the training split."""
    training, name = splits.training, type(fitted).__name__
    own = {splits.train.fingerprint(), splits.original[training].fingerprint()}
    if fitted.fitted_on in own:
        return None
    rows = max(len(splits.train), len(splits.original[training]))
    theirs = [
        s for s, table in splits.evaluation.items() if table.fingerprint() == fitted.fitted_on
    ]
    remedy = f"Fit it on splits.train, of {len(splits.train)} rows"
    if theirs or fitted.rows > rows:
        where = f"the split {theirs[0]}" if theirs else "more than the training split"
        return LeakFinding(
            "fitted beyond training", True, name, tuple(theirs), float(fitted.rows),
            f"{name} was fitted on {where}: {fitted.rows} rows", remedy,
        )  # fmt: skip
    return LeakFinding(
        "fitted beyond training", False, name, (), float(fitted.rows),
        f"{name} was fitted on a Table of {fitted.rows} rows that is not one of these splits",
        f"{remedy}, or make sure that those rows are all from {training}",
    )  # fmt: skip


def columns_in_bins(
    splits: Splits, columns: Sequence[str], label: Label | None, limits: LeakLimits
) -> list[LeakFinding]:
    """Columns that predict the label too well, or are distributed differently in a split."""
    tables, training = splits.original, splits.training
    bins = make_bins(tables[training], columns)
    if not bins:
        return []
    counted = {name: joint_counts(table, bins, label) for name, table in tables.items()}
    findings: list[LeakFinding] = []
    for number, column in enumerate(bins):
        train = counted[training][number]
        if label is not None:
            findings += _power(column, label, training, train, limits)
        for split in splits.evaluation:
            test = counted[split][number]
            if label is not None:
                findings += _power_loss(column, label, (training, split), train, test, limits)
            rows = [_rows(counts, label) for counts in (train, test)]
            findings += _shift(column, (training, split), rows[0], rows[1], limits)
    return findings


def _shared(
    a: str, b: str, overlap: SharedRows, total: int, certain: bool, columns: tuple[str, ...]
) -> LeakFinding:
    rows, pairs = overlap.rows, ", ".join(f"{a} {x} = {b} {y}" for x, y in overlap.examples)
    by = ", ".join(columns[:5]) + (" and more" if len(columns) > 5 else "")
    return LeakFinding(
        "shared rows", certain, "rows", (a, b), float(rows),
        f"{rows} of the {total} rows of {b} ({rows / total:.2%}) are in {a} too, by {by}: {pairs}",
        "Drop repeated rows before the split, or split by hash or by group of these columns",
    )  # fmt: skip


def _power(
    bins: LeakBins, label: Label, training: str, train: np.ndarray, limits: LeakLimits
) -> list[LeakFinding]:
    numeric = label.classes is None
    power = predictive_power(train, numeric, bins.number)
    limit = limits.explained_variance if numeric else limits.roc_auc
    if power.score <= limit or power.sigmas <= CHANCE_SIGMAS:
        return []
    return [LeakFinding(
        "suspicious feature", False, bins.column, (training,), power.score,
        f"{bins.column} alone predicts {label.column}: {_metric(label)} {power.score:.4f}",
        "Is it known before the label, and not derived from it? If not, drop it",
    )]  # fmt: skip


def _power_loss(
    bins: LeakBins,
    label: Label,
    splits: tuple[str, str],
    train: np.ndarray,
    test: np.ndarray,
    limits: LeakLimits,
) -> list[LeakFinding]:
    numeric = label.classes is None
    before = predictive_power(train, numeric, ordered=False)
    after = transferred_power(train, test, numeric)
    loss = before.score - after.score
    if loss - 3 * (before.error + after.error) <= limits.power_loss:
        return []
    return [LeakFinding(
        "power loss", False, bins.column, splits, loss,
        f"{bins.column} predicts {label.column} with {_metric(label)} {before.score:.4f} in "
        f"{splits[0]} and {after.score:.4f} in {splits[1]}",
        "It was computed from the labels of the training split, or its meaning has changed",
    )]  # fmt: skip


def _shift(
    bins: LeakBins, splits: tuple[str, str], train: np.ndarray, test: np.ndarray, limits: LeakLimits
) -> list[LeakFinding]:
    """Significant large differences between the numbers of rows in bins, `(bins,)`."""
    findings, name = [], bins.column
    sizes = max(train.sum(), 1), max(test.sum(), 1)
    shares = train[0] / sizes[0], test[0] / sizes[1]
    both = (train[0] + test[0]) / sum(sizes)
    error = np.sqrt(both * (1 - both) * (1 / sizes[0] + 1 / sizes[1]))
    difference = abs(shares[0] - shares[1])
    if difference > max(limits.missing_difference, 3.3 * error):
        findings.append(LeakFinding(
            "missing values", False, name, splits, difference,
            f"{name} is missing in {shares[0]:.1%} of {splits[0]} and {shares[1]:.1%} of "
            f"{splits[1]}",
            "Check that it is collected in the same way for both",
        ))  # fmt: skip
    train, test = train[1:], test[1:]
    inverse_sizes = 1 / max(train.sum(), 1) + 1 / max(test.sum(), 1)
    if bins.number:
        value, metric = kolmogorov_smirnov(train, test), "Kolmogorov-Smirnov distance"
        limit = max(limits.ks_distance, _KS_CHANCE * np.sqrt(inverse_sizes))
    else:
        value, kinds = stability_index(train, test)
        metric = "population stability index"
        # For samples of one distribution it is chi-square, scaled (Yurdakul, 2018).
        chance = stats.chi2.isf(_CHANCE, max(kinds - 1, 1)) * inverse_sizes
        limit = max(limits.psi, chance)
    if train.sum() and test.sum() and value > limit:
        findings.append(LeakFinding(
            "distribution", False, name, splits, float(value),
            f"{name} is distributed differently in {splits[0]} and {splits[1]}: {metric} "
            f"{value:.3f}",
            "Find out what has changed: metrics on this split may not carry over to new data",
        ))  # fmt: skip
    return findings


def _rows(counts: np.ndarray, label: Label | None) -> np.ndarray:
    """Rows in each bin with any label, `(bins,)`."""
    total = counts.sum(axis=0)
    if label is not None and label.classes is None:
        return total[:, 0] + total[:, 3]
    return total.sum(axis=1)


def _metric(label: Label) -> str:
    return "explained variance" if label.classes is None else "area under the ROC curve"


def _missing(block: pa.Table, column: str) -> int:
    return int(block[column].null_count)
