"""Labels from few: weak supervision, self-training and active learning."""

from raysys.labels._active_learning import select_for_labeling
from raysys.labels._label_model import FittedLabelModel, LabelModel, LabelModelScore
from raysys.labels._labeler_report import LabelerReport, LabelerSummary, labeler_report
from raysys.labels._labelers import apply_labelers
from raysys.labels._self_training import SelfTrainingResult, SelfTrainingRound, self_train

__all__ = [
    "FittedLabelModel",
    "LabelModel",
    "LabelModelScore",
    "LabelerReport",
    "LabelerSummary",
    "SelfTrainingResult",
    "SelfTrainingRound",
    "apply_labelers",
    "labeler_report",
    "select_for_labeling",
    "self_train",
]
