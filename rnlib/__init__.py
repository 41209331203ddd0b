"""Norm layers, models, attacks and probes to test what tracking in batch norm does to robustness."""

from rnlib.attacks import (
    BIM,
    PGD,
    PGDL2,
    CarliniWagner,
    GaussianNoise,
    Grad,
    GradSign,
    paper_eps,
    paper_suite,
    success,
)
from rnlib.audit import BatchDependence, audit_batch_dependence
from rnlib.convert import convert_norms
from rnlib.crafting import Attack
from rnlib.data import Dataset, load
from rnlib.detached import Detached
from rnlib.evaluate import Evaluation, evaluate, measure
from rnlib.models import Normalize, resnet, resnet_released50, vgg
from rnlib.modes import statistics_modes, track, use_statistics
from rnlib.neighbours import Among, attack_neighbours
from rnlib.norms import BatchNorm, MeanRangeNorm, MinMaxNorm, NoNorm, Norm, RobustNorm, make_norm
from rnlib.square import Square
from rnlib.tracking import batch_statistics, distance, recalibrate, tracked_statistics
from rnlib.train import Training, TrainingDiverged, fit

__version__ = "0.1.0"

__all__ = [
    "BIM",
    "PGD",
    "PGDL2",
    "Among",
    "Attack",
    "BatchDependence",
    "BatchNorm",
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
    "Square",
    "Training",
    "TrainingDiverged",
    "attack_neighbours",
    "audit_batch_dependence",
    "batch_statistics",
    "convert_norms",
    "distance",
    "evaluate",
    "fit",
    "load",
    "make_norm",
    "measure",
    "paper_eps",
    "paper_suite",
    "recalibrate",
    "resnet",
    "resnet_released50",
    "statistics_modes",
    "success",
    "track",
    "tracked_statistics",
    "use_statistics",
    "vgg",
]
