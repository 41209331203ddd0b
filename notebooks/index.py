# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is tracking to blame?
#
# *A literate, executable test of "Towards an Adversarially Robust Normalization Approach", submitted to
# ICLR 2020.*
#
# **The paper says** that batch normalisation makes networks vulnerable to adversarial images because
# inference uses tracked averages instead of the statistics of the batch; that dropping the tracking gains
# about 20 points of robust accuracy; and that RobustNorm, $(x-\mu)/(\max-\min)^p$, keeps this gain without
# the loss in clean accuracy.
#
# **What we found** is computed from result files, never typed; what was not tested says so.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper
teaser = None  # file to save the figure to, for the README

# %% tags=["remove-cell"]
from rnlib.study.parameters import parameters

parameters(globals(), ["profile", "teaser"])

# %% tags=["remove-input"]
from rnlib.study import pages
from rnlib.study.claims import judge
from rnlib.study.figures import accuracy_figure, style

style()
HEART = ["table2-natural-attacks", "table2-natural-noise", "table2-adversarial-attacks", "table3-natural"]
pages.headline(profile, HEART)

# %% [markdown]
# **How sure?** With one seed the intervals behind these verdicts are over test images: they say how well
# *these* weights are known, not what other seeds would give. A comparison of one set of weights in two
# modes suffers least from that. The data is a JPEG copy of CIFAR-10 and training is short, so absolute
# accuracies are not the paper's; differences are what is tested.

# %% tags=["remove-input"]
SERIES = [
    ("batch_norm", "tracked"),
    ("batch_norm", "batch"),
    ("robust_norm", "tracked"),
    ("robust_norm", "batch"),
]
figure = accuracy_figure(
    profile, 2, ["natural", "adversarial"], ["clean", "noise", "grad_sign", "pgd_linf"], SERIES
)
if teaser is not None:
    figure.savefig(teaser, dpi=130)
pages.show(
    figure,
    caption=(
        "ResNet-20, each training evaluated with tracked and with batch statistics. BatchNorm, batch minus"
        " tracked, natural training, in points, ours and in brackets the paper's:"
        f" {pages.differences(judge('table2-natural-attacks', profile))}."
    ),
    alt=(
        "Accuracy clean and under three attacks after natural and adversarial training, the paper's numbers"
        " beside ours."
    ),
    notebook="index",
    profile=profile,
)

# %% tags=["remove-input"]
pages.setting(profile)

# %% [markdown]
# ## Every claim

# %% tags=["remove-input"]
pages.ledger(profile)

# %% [markdown]
# **Where to go.** {doc}`chapters/table2` is the heart of the argument, {doc}`chapters/fig1` looks at the
# mismatch itself, {doc}`chapters/table3` at RobustNorm. {doc}`background/normalisation` and
# {doc}`background/attacks` explain the equations. {doc}`run` says how to do all of it again;
# {doc}`api/index` documents the library.
