"""Features: fitted on a Table once, then made of a Table in bulk and of a request the same way."""

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
