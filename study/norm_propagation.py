"""Normalisation propagation (Arpit et al., 2016): keep unit variance by known constants, without data."""

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from rnlib.norms import NoNorm


class NormProp(NoNorm):
    """The place of a norm in a network that :func:`reparametrize` changes; itself a learned shift."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, bias=True)


NORMS = {"norm_prop": NormProp}  # to build a network with before :func:`reparametrize` completes it


class NormalizedReLU(nn.Module):
    """(ReLU(x) - m) / s, with m and s the mean and standard deviation of ReLU(z) for z ~ N(0, variance).

    m = sqrt(variance / (2 pi)), s^2 = variance (1 - 1 / pi) / 2.
    """

    def __init__(self, variance: float = 1.0) -> None:
        super().__init__()
        self.mean = math.sqrt(variance / (2 * math.pi))
        self.std = math.sqrt(variance * (1 - 1 / math.pi) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return (F.relu(x) - self.mean) / self.std


def reparametrize(model: nn.Module) -> nn.Module:
    """Let every :class:`NormProp` of a new network of :mod:`rnlib.models` reach the layers around it.

    Filters become g w / ||w||, with every g at sqrt(1 - 1 / pi) = 1 / 1.21 in the beginning, where the
    layer's Jacobian has singular values about 1. The ReLU behind becomes a :class:`NormalizedReLU`; the one
    behind the sum of a residual block expects twice the variance (our addition: the source has no residual
    networks). The model is changed and returned; one without the layer stays as it is.
    """
    for parent in list(model.modules()):
        if isinstance(parent, nn.Sequential):
            for place, (before, layer) in enumerate(pairwise(parent)):
                if isinstance(layer, NormProp):
                    weight_norm(before)
                    nn.init.constant_(before.parametrizations.weight.original0, math.sqrt(1 - 1 / math.pi))  # type: ignore
                if isinstance(before, NormProp) and isinstance(layer, nn.ReLU):
                    parent[place + 1] = NormalizedReLU()
        residual = getattr(parent, "residual", None)
        if isinstance(residual, nn.Sequential) and isinstance(residual[-1], NormProp):
            parent.activation = NormalizedReLU(2)
    return model
