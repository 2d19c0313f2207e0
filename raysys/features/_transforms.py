"""The transforms that a featurizer is made of: plain, validated definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from raysys.features._transform_base import Transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.features._transform_base import State

CalendarField = Literal[
    "year", "quarter", "month", "week", "day", "day_of_year", "weekday", "weekend", "hour",
    "minute", "epoch_day",
]  # fmt: skip
Encode = Literal["onehot", "ordinal"]
# A column of buckets is float32, which holds every integer up to here.
Buckets = Annotated[int, Field(ge=2, le=1 << 24)]


class Numeric(Transform, frozen=True):
    """Numbers: imputed, then on a logarithmic scale, then scaled.

    NaN and infinities count as missing; a result beyond the range of float32 is infinite.

    Attributes:
        impute: What stands for a missing value: the "mean" or "median" of those that are there,
            or a number. None leaves NaN, for models that know what to do with it.
        indicator: Adds a column `<column>_missing` of 0 and 1.
        log: Takes sign(x) * log(1 + abs(x)), which is log1p for what is not negative.
        scale: "standard" gives mean 0 and variance 1, "minmax" values from 0 to 1, over the
            imputed values that it is fitted on. A column with one value is only shifted.
    """

    kind: Literal["numeric"] = "numeric"
    impute: Literal["mean", "median"] | FiniteFloat | None = "mean"
    indicator: bool = True
    log: bool = False
    scale: Literal["standard", "minmax"] | None = None

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        flags = [f"{name}_missing" for name in self.columns] if self.indicator else []
        return [*self.columns, *flags]


class Binned(Transform, frozen=True):
    """Numbers cut into bins; a bin holds its lower edge, not its upper one.

    Attributes:
        bins: How many; fewer where edges coincide.
        by: "quantile" for bins of equally many rows, "uniform" for bins of equal width.
        encode: "onehot" gives a column a bin, all 0 for a missing value; "ordinal" the number
            of the bin, -1 for a missing value.
    """

    kind: Literal["binned"] = "binned"
    bins: int = Field(8, ge=2, le=4096)
    by: Literal["quantile", "uniform"] = "quantile"
    encode: Encode = "onehot"

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        if self.encode == "ordinal":
            return [f"{name}_bin" for name in self.columns]
        pairs = zip(self.columns, states, strict=True)
        return [f"{n}_bin={k}" for n, state in pairs for k in range(len(state["edges"]) + 1)]


class Cyclic(Transform, frozen=True):
    """Numbers on a circle, as sines and cosines of 1, 2, ... turns; 0 for a missing value.

    Positional features as in Vaswani et al., "Attention is all you need" (2017, section 3.5),
    with harmonics of a known period for frequencies.

    Attributes:
        period: After which the values start again: 24 for hours, 1440 for minutes of a day.
        harmonics: How many frequencies.
    """

    kind: Literal["cyclic"] = "cyclic"
    period: float = Field(gt=0, allow_inf_nan=False)
    harmonics: int = Field(1, ge=1, le=64)

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        turns = range(1, self.harmonics + 1)
        return [
            f"{name}_{wave}{turn}"
            for wave in ("sin", "cos")
            for name in self.columns
            for turn in turns
        ]


class Calendar(Transform, frozen=True):
    """What a calendar says of times; -1 for a missing one.

    Attributes:
        fields: `weekday` is 0 on Monday, `weekend` 1 on Saturday and Sunday, `week` the ISO one,
            `epoch_day` the number of days since 1970-01-01.
    """

    kind: Literal["calendar"] = "calendar"
    fields: tuple[CalendarField, ...] = Field(("month", "weekday", "hour"), min_length=1)

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        return [f"{name}_{field}" for name in self.columns for field in self.fields]


class OneHot(Transform, frozen=True):
    """Categories, a column for each of the frequent ones: of all of them one is 1.

    Attributes:
        most: How many categories get a column of their own, the most frequent. All others,
            unseen ones among them, share `<column>_other`; a missing one is `<column>_missing`.
    """

    kind: Literal["onehot"] = "onehot"
    most: int = Field(20, ge=1, le=10_000)

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        made = []
        for name, state in zip(self.columns, states, strict=True):
            made += [f"{name}={category}" for category in state["categories"]]
            made += [f"{name}_other", f"{name}_missing"]
        return made


class Hashed(Transform, frozen=True):
    """Categories without a list of them, for those that nobody has seen yet.

    The hashing trick (Weinberger et al., "Feature hashing for large scale multitask learning",
    2009), without signs.

    Attributes:
        buckets: How many; categories in one bucket are the same to the model.
        encode: "onehot" gives a column a bucket, all 0 for a missing value; "ordinal" the
            number of the bucket, for an embedding or trees, -1 for a missing value.
    """

    kind: Literal["hashed"] = "hashed"
    buckets: Buckets
    encode: Encode = "onehot"

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        return [
            bucket for n in self.columns for bucket in bucket_names(n, self.buckets, self.encode)
        ]


class Crossed(Transform, frozen=True):
    """Combinations of categories, hashed; a missing one combines like any other.

    Attributes:
        columns: Two or more that are combined with each other.
        buckets: As of `Hashed`.
        encode: As of `Hashed`.
    """

    kind: Literal["crossed"] = "crossed"
    columns: tuple[str, ...] = Field(min_length=2)
    buckets: Buckets
    encode: Encode = "onehot"

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        return bucket_names("*".join(self.columns), self.buckets, self.encode)


class TextHashed(Transform, frozen=True):
    """Counts of a text's words and word n-grams, in hashed buckets.

    Words are runs of letters, digits and underscores, in lower case.

    Attributes:
        buckets: How many.
        ngrams: The longest run of words that counts as one.
    """

    kind: Literal["text_hashed"] = "text_hashed"
    buckets: Buckets
    ngrams: int = Field(1, ge=1, le=8)

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        return [bucket for n in self.columns for bucket in bucket_names(n, self.buckets, "onehot")]


class TargetEncoded(Transform, frozen=True):
    """Categories as the mean of a target over their rows, drawn towards the mean of all.

    (sum + smoothing * mean of all) / (count + smoothing): Micci-Barreca, "A preprocessing scheme
    for high-cardinality categorical attributes" (2001), equations 3 and 4 with the weight of the
    m-estimate. A missing value is a category of its own; an unseen one gets the mean of all.

    A training row must not see its own target: use `Featurizer.fit_transform`. It encodes a row
    out-of-fold, with the statistics of the other folds; or, with `time`, by the ordered
    statistics of CatBoost (Prokhorenkova et al., 2018, section 3.2) with time for the order: only
    rows of strictly earlier times count, those of the same time not.

    Attributes:
        target: Column of numbers or booleans; rows without it do not count.
        smoothing: Rows that the mean of all weighs.
        folds: Of `fit_transform`. A row's fold is a hash of its number.
        group: Rows that are equal in this column share a fold (people, sessions).
        time: Column of times; goes without folds. Where nothing is earlier, as for a row without
            a time, the mean of all is 0.
        delay_s: Seconds after a row's time at which its target is known: earlier by more counts.
        seed: Of the folds.
        most: Categories kept, the most frequent.
    """

    kind: Literal["target_encoded"] = "target_encoded"
    target: str
    smoothing: float = Field(20.0, ge=0, allow_inf_nan=False)
    folds: int = Field(5, ge=2, le=100)
    group: str | None = None
    time: str | None = None
    delay_s: float = Field(0.0, ge=0, le=1e11)
    seed: int = Field(0, ge=0)
    most: int = Field(100_000, ge=1, le=100_000)

    @model_validator(mode="after")
    def _one_way(self) -> TargetEncoded:
        if self.group is not None and self.time is not None:
            raise ValueError("group= makes folds and time= goes without them: give one of them")
        if self.delay_s and self.time is None:
            raise ValueError("delay_s= is counted from a row's time: give time= as well")
        return self

    def needs(self) -> list[str]:
        """See `Transform.needs`."""
        also = (self.target, self.group, self.time)
        return [*self.columns, *(name for name in also if name is not None)]

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)

    def names(self, states: Sequence[State]) -> list[str]:
        """See `Transform.names`."""
        return [f"{name}_mean_{self.target}" for name in self.columns]


def bucket_names(name: str, buckets: int, encode: Encode) -> list[str]:
    """Names of a hashed column's columns."""
    if encode == "ordinal":
        return [f"{name}_bucket"]
    return [f"{name}#{bucket}" for bucket in range(buckets)]


AnyTransform = Annotated[
    Numeric | Binned | Cyclic | Calendar | OneHot | Hashed | Crossed | TextHashed | TargetEncoded,
    Field(discriminator="kind"),
]
