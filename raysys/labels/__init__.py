"""Labels where there are few: rules that vote, a model's own sure answers, the next to ask for."""

from raysys.labels._active_learning import pick
from raysys.labels._label_model import FittedLabelModel, LabelModel, Score
from raysys.labels._labelers import apply_labelers
from raysys.labels._report import LabelerFigures, LabelerReport, labeler_report
from raysys.labels._self_train import Round, SelfTrained, self_train

__all__ = [
    "FittedLabelModel",
    "LabelModel",
    "LabelerFigures",
    "LabelerReport",
    "Round",
    "Score",
    "SelfTrained",
    "apply_labelers",
    "labeler_report",
    "pick",
    "self_train",
]
