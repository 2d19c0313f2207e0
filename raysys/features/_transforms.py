"""The transforms of a featurizer: plain, validated definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from raysys.errors import DataError
from raysys.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Learned from one column by a transform: numbers, lists of texts, float64 arrays.
State = dict[str, Any]
CalendarField = Literal[
    "year", "quarter", "month", "week", "day", "day_of_year", "weekday", "weekend", "hour",
    "minute", "epoch_day",
]  # fmt: skip
Encode = Literal["onehot", "ordinal"]
# A column of buckets is float32, which holds every integer up to this limit.
BucketCount = Annotated[int, Field(ge=2, le=1 << 24)]


class Transform(Settings, frozen=True):
    """Base of the transforms.

    Subclasses define an initializer that calls this one: type checkers would otherwise take
    `columns` for a keyword. They require it, but pydantic calls them with what a file has.

    Attributes:
        columns: Input columns of the table, fields of a request.
    """

    columns: Annotated[tuple[str, ...], Field(min_length=1)]

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns=columns, **options)

    def required_columns(self) -> list[str]:
        """Columns that a table must have to fit the transform."""
        return list(self.columns)

    def feature_names(self, states: Sequence[State]) -> list[str]:
        """Names of the output columns, in order."""
        pairs = zip(self.columns, states, strict=True)
        return [feature for name, state in pairs for feature in self.names_of(name, state)]

    def names_of(self, name: str, state: State) -> list[str]:
        """Names of the output columns of one input column."""
        raise NotImplementedError


class Numeric(Transform, frozen=True):
    """Numbers: imputed, then on a logarithmic scale, then scaled.

    NaN and infinities count as missing; a result beyond the range of float32 is infinite.

    Attributes:
        impute: Replacement of missing values: the "mean" or "median" of the present ones, or a
            number. None leaves NaN, for models that handle it.
        add_indicator: Adds a column `<column>_missing` of 0 and 1.
        log: Applies sign(x) * log(1 + abs(x)), which is log1p for values from 0 on.
        scale: "standard" gives mean 0 and variance 1, "minmax" values from 0 to 1, over the
            imputed values of the fitted table. A constant column is only shifted.
    """

    kind: Literal["numeric"] = "numeric"
    impute: Literal["mean", "median"] | FiniteFloat | None = "mean"
    add_indicator: bool = True
    log: bool = False
    scale: Literal["standard", "minmax"] | None = None

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def feature_names(self, states: Sequence[State]) -> list[str]:
        flags = [f"{name}_missing" for name in self.columns] if self.add_indicator else []
        return [*self.columns, *flags]


class Binned(Transform, frozen=True):
    """Numbers cut into bins that include their lower edge and exclude their upper one.

    Attributes:
        n_bins: Number of bins; fewer result where edges coincide.
        strategy: "quantile" for bins of equally many rows, "uniform" for bins of equal width.
        encode: "onehot" gives a column a bin, all 0 for a missing value; "ordinal" the number
            of the bin, -1 for a missing value.
    """

    kind: Literal["binned"] = "binned"
    n_bins: int = Field(8, ge=2, le=4096)
    strategy: Literal["quantile", "uniform"] = "quantile"
    encode: Encode = "onehot"

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def names_of(self, name: str, state: State) -> list[str]:
        if self.encode == "ordinal":
            return [f"{name}_bin"]
        return [f"{name}_bin={number}" for number in range(len(state["edges"]) + 1)]


class Cyclic(Transform, frozen=True):
    """Numbers on a circle, as sines and cosines of 1, 2, ... turns; 0 for a missing value.

    Positional features as in Vaswani et al., "Attention is all you need" (2017, section 3.5),
    with harmonics of a given period for frequencies.

    Attributes:
        period: Length after which values repeat: 24 for hours, 1440 for minutes of a day.
        harmonics: Number of frequencies.
    """

    kind: Literal["cyclic"] = "cyclic"
    period: float = Field(gt=0, allow_inf_nan=False)
    harmonics: int = Field(1, ge=1, le=64)

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def feature_names(self, states: Sequence[State]) -> list[str]:
        turns = range(1, self.harmonics + 1)
        sines = [f"{name}_sin{turn}" for name in self.columns for turn in turns]
        return sines + [f"{name}_cos{turn}" for name in self.columns for turn in turns]


class Calendar(Transform, frozen=True):
    """Calendar fields of times; -1 for a missing time.

    Attributes:
        fields: `weekday` is 0 on Monday, `weekend` 1 on Saturday and Sunday, `week` the ISO one,
            `epoch_day` the number of days since 1970-01-01.
    """

    kind: Literal["calendar"] = "calendar"
    fields: tuple[CalendarField, ...] = Field(("month", "weekday", "hour"), min_length=1)

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def names_of(self, name: str, state: State) -> list[str]:
        return [f"{name}_{field}" for field in self.fields]


class OneHot(Transform, frozen=True):
    """Categories as one column of 0 and 1 for each frequent one.

    Attributes:
        max_categories: Categories with a column of their own, the most frequent ones.
            Infrequent and unseen ones share `<column>_other`, and a missing value is
            `<column>_missing`; scikit-learn counts these two in its `max_categories`.
    """

    kind: Literal["onehot"] = "onehot"
    max_categories: int = Field(20, ge=1, le=10_000)

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def names_of(self, name: str, state: State) -> list[str]:
        categories = [f"{name}={category}" for category in state["categories"]]
        return [*categories, f"{name}_other", f"{name}_missing"]


class Hashed(Transform, frozen=True):
    """Categories by their hash, for those that may be unseen when fitting.

    The hashing trick (Weinberger et al., "Feature hashing for large scale multitask learning",
    2009), without signs.

    Attributes:
        buckets: Number of buckets; a model cannot tell the categories in one bucket apart.
        encode: "onehot" gives a column a bucket, all 0 for a missing value; "ordinal" the
            number of the bucket, for an embedding or trees, -1 for a missing value.
    """

    kind: Literal["hashed"] = "hashed"
    buckets: BucketCount
    encode: Encode = "onehot"

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def names_of(self, name: str, state: State) -> list[str]:
        return bucket_names(name, self.buckets, self.encode)


class Crossed(Transform, frozen=True):
    """Combinations of categories, hashed; a missing value combines like any category.

    Attributes:
        columns: Two or more columns to combine with each other.
        buckets: Number of buckets, as for `Hashed`.
        encode: Output encoding, as for `Hashed`.
    """

    kind: Literal["crossed"] = "crossed"
    columns: tuple[str, ...] = Field(min_length=2)
    buckets: BucketCount
    encode: Encode = "onehot"

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def feature_names(self, states: Sequence[State]) -> list[str]:
        return bucket_names("*".join(self.columns), self.buckets, self.encode)


class TextHashed(Transform, frozen=True):
    """Counts of a text's words and word n-grams, in hashed buckets.

    Words are runs of letters, digits and underscores, in lower case.

    Attributes:
        buckets: Number of buckets.
        ngrams: Longest n-gram to count; all shorter ones count too.
    """

    kind: Literal["text_hashed"] = "text_hashed"
    buckets: BucketCount
    ngrams: int = Field(1, ge=1, le=8)

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def names_of(self, name: str, state: State) -> list[str]:
        return bucket_names(name, self.buckets, "onehot")


class TargetEncoded(Transform, frozen=True):
    """Categories as the mean of a target over their rows, shrunk towards the overall mean.

    (sum + smooth * overall mean) / (count + smooth): Micci-Barreca, "A preprocessing scheme for
    high-cardinality categorical attributes" (2001), equations 3 and 4 with the weight of the
    m-estimate. A missing value is a category of its own; an unseen one gets the overall mean.

    A training row must not see its own target: use `Featurizer.fit_transform`. It encodes a row
    out-of-fold, with the statistics of the remaining folds; or, with `time`, by the ordered
    statistics of CatBoost (Prokhorenkova et al., 2018, section 3.2) in the order of time: only
    rows of strictly earlier times count.

    Attributes:
        target: Column of numbers or booleans; rows without a target do not count.
        smooth: Weight of the overall mean, in rows.
        cv: Number of folds of `fit_transform`. A row's fold is a hash of its number.
        group: Column of groups (people, sessions); the rows of a group share a fold.
        time: Column of times; replaces the folds. Where nothing is earlier, as for a row without
            a time, the overall mean is 0.
        delay_s: Seconds after a row's time at which its target is known: rows count only if they
            are earlier by more than this.
        seed: Seed of the folds.
        max_categories: Number of stored categories, the most frequent ones.
    """

    kind: Literal["target_encoded"] = "target_encoded"
    target: str
    smooth: float = Field(20.0, ge=0, allow_inf_nan=False)
    cv: int = Field(5, ge=2, le=100)
    group: str | None = None
    time: str | None = None
    delay_s: float = Field(0.0, ge=0, le=1e11)
    seed: int = Field(0, ge=0)
    max_categories: int = Field(100_000, ge=1, le=100_000)

    @model_validator(mode="after")
    def _check_order(self) -> TargetEncoded:
        if self.group is not None and self.time is not None:
            raise ValueError("group= makes folds and time= replaces folds: give one of them")
        if self.delay_s and self.time is None:
            raise ValueError("delay_s= is counted from a row's time: give time= as well")
        return self

    def required_columns(self) -> list[str]:
        extra = (self.target, self.group, self.time)
        return [*self.columns, *(name for name in extra if name is not None)]

    def __init__(self, columns: Sequence[str] = (), **options: Any) -> None:
        super().__init__(columns, **options)

    def names_of(self, name: str, state: State) -> list[str]:
        return [f"{name}_mean_{self.target}"]


def bucket_names(name: str, buckets: int, encode: Encode) -> list[str]:
    """Names of the features of a hashed column."""
    if encode == "ordinal":
        return [f"{name}_bucket"]
    return [f"{name}#{bucket}" for bucket in range(buckets)]


AnyTransform = Annotated[
    Numeric | Binned | Cyclic | Calendar | OneHot | Hashed | Crossed | TextHashed | TargetEncoded,
    Field(discriminator="kind"),
]


def check_unique(names: Iterable[str], keep: Iterable[str] = ()) -> None:
    """Refuse names that occur twice, or in `keep`."""
    seen = set(keep)
    for name in names:
        if name in seen:
            raise DataError(
                f"two columns would be named {name!r}: use each column in one transform of a kind, "
                "and rename a column to keep that has the name of a feature"
            )
        seen.add(name)
