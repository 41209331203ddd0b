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
from rnlib.audit import (
    Audit,
    BatchDependence,
    Budget,
    Robustness,
    Strongest,
    audit_batch_dependence,
    strongest,
)
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
from rnlib.train import Training, TrainingDiverged, fit, fit_many

__version__ = "0.2.0"

__all__ = ["BatchNorm", "MeanRangeNorm", "MinMaxNorm", "NoNorm", "Norm", "RobustNorm"]
__all__ += ["Dataset", "Normalize", "convert_norms", "load", "make_norm", "pretrained", "resnet", "vgg"]
__all__ += ["Evaluation", "Training", "TrainingDiverged", "evaluate", "fit", "fit_many", "measure"]
__all__ += ["BIM", "PGD", "PGDL2", "Attack", "CarliniWagner", "GaussianNoise", "Grad", "GradSign"]
__all__ += ["paper_eps", "paper_suite", "success"]
__all__ += ["APGD", "FPA", "GMSA", "Among", "Budget", "Square", "Strongest", "attack_neighbours", "strongest"]
__all__ += ["Detached", "batch_statistics", "distance", "frozen", "gradient_shares", "recalibrate"]
__all__ += ["statistics_modes", "track", "tracked_statistics", "use_statistics"]
__all__ += ["Audit", "BatchDependence", "Robustness", "audit_batch_dependence"]
