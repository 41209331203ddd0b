"""Norm layers, models, attacks and probes to test what tracking in batch norm does to robustness."""

from rnlib.attacks import (
    BIM,
    PGD,
    PGDL2,
    Attack,
    CarliniWagner,
    GaussianNoise,
    Grad,
    GradSign,
    paper_eps,
    paper_suite,
    success,
)
from rnlib.audit import Audit, BatchDependence, Robustness, audit_batch_dependence
from rnlib.convert import convert_norms
from rnlib.data import Dataset, load
from rnlib.evaluate import Evaluation, evaluate, measure
from rnlib.models import Normalize, pretrained, resnet, vgg
from rnlib.norms import BatchNorm, MeanRangeNorm, MinMaxNorm, NoNorm, Norm, RobustNorm
from rnlib.other_norms import make_norm
from rnlib.statistics import (
    Detached,
    batch_statistics,
    distance,
    frozen,
    gradient_shares,
    recalibrate,
    statistics_modes,
    track,
    tracked_statistics,
    use_statistics,
)
from rnlib.strong_attacks import APGD, FPA, GMSA, Among, Square, attack_neighbours
from rnlib.strongest import Budget, Strongest, strongest
from rnlib.train import Training, TrainingDiverged, fit, fit_many

__version__ = "0.2.0"

__all__ = [
    "APGD",
    "BIM",
    "FPA",
    "GMSA",
    "PGD",
    "PGDL2",
    "Among",
    "Attack",
    "Audit",
    "BatchDependence",
    "BatchNorm",
    "Budget",
    "CarliniWagner",
    "Dataset",
    "Detached",
    "Evaluation",
    "GaussianNoise",
    "Grad",
    "GradSign",
    "MeanRangeNorm",
    "MinMaxNorm",
    "NoNorm",
    "Norm",
    "Normalize",
    "RobustNorm",
    "Robustness",
    "Square",
    "Strongest",
    "Training",
    "TrainingDiverged",
    "attack_neighbours",
    "audit_batch_dependence",
    "batch_statistics",
    "convert_norms",
    "distance",
    "evaluate",
    "fit",
    "fit_many",
    "frozen",
    "gradient_shares",
    "load",
    "make_norm",
    "measure",
    "paper_eps",
    "paper_suite",
    "pretrained",
    "recalibrate",
    "resnet",
    "statistics_modes",
    "strongest",
    "success",
    "track",
    "tracked_statistics",
    "use_statistics",
    "vgg",
]
