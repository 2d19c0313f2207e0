"""Features: fitted on a Table once, the same for Tables, batches and single requests."""

from raysys.features._featurizer import Featurizer
from raysys.features._fitted_featurizer import FittedFeaturizer
from raysys.features._transforms import (
    Binned,
    Calendar,
    Crossed,
    Cyclic,
    Hashed,
    Numeric,
    OneHot,
    TargetEncoded,
    TextHashed,
)

__all__ = [
    "Binned",
    "Calendar",
    "Crossed",
    "Cyclic",
    "Featurizer",
    "FittedFeaturizer",
    "Hashed",
    "Numeric",
    "OneHot",
    "TargetEncoded",
    "TextHashed",
]
