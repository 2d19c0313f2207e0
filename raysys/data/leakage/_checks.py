"""The single checks of a leak report; each one gives findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.data.leakage._bins import Bins, make_bins
from raysys.data.leakage._column_power import (
    CHANCE_SIGMAS,
    Label,
    joint_counts,
    kolmogorov_smirnov,
    power,
    power_held,
    stability_index,
)
from raysys.data.leakage._report import Finding, LeakLimits
from raysys.data.leakage._shared_rows import Compared, disorder, shared_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data._table import Table
    from raysys.data.sampling._split import Splits

# Kolmogorov's 0.1 % point: distances of samples that are smaller than this times the square root
# of (1/n + 1/m) are chance (Smirnov, 1948).
_KS_CHANCE = 1.95
_CHANCE = 0.001


def rows_and_categories(
    splits: Splits,
    keys: Sequence[str],
    features: Sequence[str],
    categories: Sequence[str],
    limits: LeakLimits,
) -> tuple[list[Finding], list[str]]:
    """Rows that stand in two splits, and categories that the training split lacks."""
    tables, training = splits.as_drawn, splits.training
    columns = tuple(keys or features)
    compared = [Compared(columns, missing=not keys), *(Compared((name,)) for name in categories)]
    compared = [one for one in compared if one.columns]
    if not compared:
        return [], ["no column was given by which rows could be compared"]
    shared, names = shared_rows(tables, compared), list(tables)
    checked = [f"{sum(len(t) for t in tables.values())} rows by {', '.join(columns)}"]
    findings = []
    for number, a in enumerate(names):
        for b in names[number + 1 :]:
            found = shared.get((0, a, b))
            if found:
                findings.append(
                    _shared(a, b, found.rows, found.examples, len(tables[b]), bool(keys), columns)
                )
    for what, name in enumerate(categories, start=1):
        for other, table in splits.evaluation.items():
            there = len(table) - _missing(table, name)
            known = shared.get((what, training, other))
            unseen = there - (known.rows if known else 0)
            share = unseen / max(len(table), 1)
            if share > limits.unseen:
                findings.append(Finding(
                    "unseen categories", False, name, (training, other), share,
                    f"{share:.1%} of the rows of {other} ({unseen}) have a {name} that no row of "
                    f"{training} has",
                    "Split so that training sees them, or give unknown values a code of their own",
                ))  # fmt: skip
    return findings, checked


def time_order(tables: Mapping[str, Table], column: str) -> list[Finding]:
    """Splits that do not end before the next one starts."""
    return [
        Finding(
            "time order", True, column, (earlier, later), float(found.early),
            f"{found.early} rows of {later} lie before the last of {earlier} ({found.last}), and "
            f"{found.late} of {earlier} after the first of {later} ({found.first})",
            "Split with split_by_time, or name the splits in the order of time",
        )
        for (earlier, later), found in disorder(tables, column).items()
    ]  # fmt: skip


def fitted_beyond(splits: Splits, fitted: Any) -> Finding | None:
    """What was fitted on something else than the training split."""
    training, name = splits.training, type(fitted).__name__
    own = {splits.train.fingerprint(), splits.as_drawn[training].fingerprint()}
    if fitted.fitted_on in own:
        return None
    rows = max(len(splits.train), len(splits.as_drawn[training]))
    theirs = [
        s for s, table in splits.evaluation.items() if table.fingerprint() == fitted.fitted_on
    ]
    remedy = f"Fit it on splits.train, of {len(splits.train)} rows"
    if theirs or fitted.rows > rows:
        where = f"the split {theirs[0]}" if theirs else "more than the training split"
        return Finding(
            "fitted beyond training", True, name, tuple(theirs), float(fitted.rows),
            f"{name} was fitted on {where}: {fitted.rows} rows", remedy,
        )  # fmt: skip
    return Finding(
        "fitted beyond training", False, name, (), float(fitted.rows),
        f"{name} was fitted on a Table of {fitted.rows} rows that is no split of these",
        f"{remedy}; or see to it that those rows are all from {training}",
    )  # fmt: skip


def columns_in_bins(
    splits: Splits, columns: Sequence[str], label: Label | None, limits: LeakLimits
) -> list[Finding]:
    """Columns that tell too much of the label, or are spread otherwise in another split."""
    tables, training = splits.as_drawn, splits.training
    bins = make_bins(tables[training], columns)
    if not bins:
        return []
    counted = {name: joint_counts(table, bins, label) for name, table in tables.items()}
    findings: list[Finding] = []
    for number, one in enumerate(bins):
        train = counted[training][number]
        if label is not None:
            findings += _power(one, label, training, train, limits)
        for other in splits.evaluation:
            held = counted[other][number]
            if label is not None:
                findings += _lost(one, label, (training, other), train, held, limits)
            rows = [_rows(counts, label) for counts in (train, held)]
            findings += _coverage(one, (training, other), rows[0], rows[1], limits)
    return findings


def _shared(
    a: str,
    b: str,
    rows: int,
    examples: list[tuple[int, int]],
    of: int,
    certain: bool,
    columns: tuple[str, ...],
) -> Finding:
    pairs = ", ".join(f"{a} {x} = {b} {y}" for x, y in examples)
    by = ", ".join(columns[:5]) + (" and more" if len(columns) > 5 else "")
    return Finding(
        "shared rows", certain, "rows", (a, b), float(rows),
        f"{rows} of the {of} rows of {b} ({rows / of:.2%}) stand in {a} too, by {by}: rows {pairs}",
        "Drop repeated rows before the split, or split by hash or by group of these columns",
    )  # fmt: skip


def _power(
    bins: Bins, label: Label, training: str, train: np.ndarray, limits: LeakLimits
) -> list[Finding]:
    numeric = label.classes is None
    found = power(train, numeric, bins.number)
    limit = limits.explained if numeric else limits.area
    if found.score <= limit or found.sigmas <= CHANCE_SIGMAS:
        return []
    return [Finding(
        "suspicious feature", False, bins.column, (training,), found.score,
        f"{bins.column} alone tells {label.column}: {_measure(label)} {found.score:.4f}",
        "Is it known before the label is, and not made of it? If not, leave it out",
    )]  # fmt: skip


def _lost(
    bins: Bins,
    label: Label,
    splits: tuple[str, str],
    train: np.ndarray,
    held: np.ndarray,
    limits: LeakLimits,
) -> list[Finding]:
    numeric = label.classes is None
    before, after = power(train, numeric, ordered=False), power_held(train, held, numeric)
    lost = before.score - after.score
    if lost - 3 * (before.error + after.error) <= limits.lost:
        return []
    return [Finding(
        "power lost", False, bins.column, splits, lost,
        f"what {bins.column} tells of {label.column} in {splits[0]}, {_measure(label)} "
        f"{before.score:.4f}, is {after.score:.4f} in {splits[1]}",
        "It was made with the labels of the training split, or its meaning has changed",
    )]  # fmt: skip


def _coverage(
    bins: Bins, splits: tuple[str, str], train: np.ndarray, held: np.ndarray, limits: LeakLimits
) -> list[Finding]:
    """Differences between the rows in bins, `(bins,)`, that are large and no chance."""
    from scipy import stats

    findings, name = [], bins.column
    sizes = max(train.sum(), 1), max(held.sum(), 1)
    shares = train[0] / sizes[0], held[0] / sizes[1]
    both = (train[0] + held[0]) / sum(sizes)
    error = np.sqrt(both * (1 - both) * (1 / sizes[0] + 1 / sizes[1]))
    difference = abs(shares[0] - shares[1])
    if difference > max(limits.missing, 3.3 * error):
        findings.append(Finding(
            "missing values", False, name, splits, difference,
            f"{name} is missing in {shares[0]:.1%} of {splits[0]} and {shares[1]:.1%} of "
            f"{splits[1]}",
            "See whether it is collected in the same way for both",
        ))  # fmt: skip
    train, held = train[1:], held[1:]
    there = 1 / max(train.sum(), 1) + 1 / max(held.sum(), 1)
    if bins.number:
        figure, measure = kolmogorov_smirnov(train, held), "Kolmogorov-Smirnov distance"
        limit = max(limits.distance, _KS_CHANCE * np.sqrt(there))
    else:
        figure, kinds = stability_index(train, held)
        measure = "population stability index"
        # Of samples of one distribution it is chi-square, scaled (Yurdakul, 2018).
        chance = stats.chi2.isf(_CHANCE, max(kinds - 1, 1)) * there
        limit = max(limits.stability, chance)
    if train.sum() and held.sum() and figure > limit:
        findings.append(Finding(
            "distribution", False, name, splits, float(figure),
            f"{name} is spread otherwise in {splits[1]} than in {splits[0]}: {measure} "
            f"{figure:.3f}",
            "See what has changed: figures on this split say little about other data",
        ))  # fmt: skip
    return findings


def _rows(counts: np.ndarray, label: Label | None) -> np.ndarray:
    """Rows in each bin, whatever their label, `(bins,)`."""
    whole = counts.sum(axis=0)
    if label is not None and label.classes is None:
        return whole[:, 0] + whole[:, 3]
    return whole.sum(axis=1)


def _measure(label: Label) -> str:
    return "explained variance" if label.classes is None else "area under the ROC curve"


def _missing(table: Table, column: str) -> int:
    return sum(table.gather(_nulls, column, name="leaks_missing"))


def _nulls(block: Any, column: str) -> int:
    return int(block[column].null_count)
