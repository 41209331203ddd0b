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
from study.parameters import parameters

parameters(globals(), ["profile", "teaser"])

# %% tags=["remove-input"]
from IPython.display import Markdown, display

from study.report import decision, ledger, pages
from study.report.claims import judge
from study.report.figures import accuracy_figure, style
from study.runs import TRAININGS, read_profile, shown

style()
answer = (
    f"**The answer** on CIFAR-10, by a rule of conditions ({{ref}}`verdict`):\n\n{decision.answer(profile)}"
)
display(Markdown(answer))
GAP = ["natural-attacks", "twin-natural", "detached-natural", "natural-robust-norm", "robust-norm-given"]
GAP += ["adversarial-attacks", "twin-adversarial"]
display(Markdown("**Is the paper's gap there, and what is it?** After the longest training ({ref}`longer`):"))
display(ledger.summary(profile, [f"longer-{name}" for name in GAP]))
HEART = ["table2-natural-attacks", "table2-natural-noise", "table2-adversarial-attacks"]
HEART += ["table3-natural-kept", "table3-natural"]
display(
    Markdown(
        f"**The paper's claims.** {ledger.tally(profile)} Some are there for two"
        " lengths of training. Those it stands on, after the short one:"
    )
)
display(ledger.summary(profile, HEART))
OTHER = [f"fashion-{t}-{part}" for part in ("attacks", "twin", "single") for t in TRAININGS]
display(Markdown("**Fashion-MNIST**, a data set that is not in the paper ({doc}`chapters/fashion`):"))
ledger.summary(profile, OTHER)

# %% [markdown]
# **How sure?** With several seeds the intervals behind these verdicts are t intervals over them; where one
# network was trained they are over test images and say how well *these* weights are known,
# not what other seeds would give. The data is a JPEG copy of CIFAR-10, and but for the four networks of
# {doc}`chapters/longer` training is short, so absolute accuracies are not the paper's; differences are what
# is tested.

# %% tags=["remove-input"]
SERIES = [
    ("batch_norm", "tracked"),
    ("batch_norm", "batch"),
    ("robust_norm", "tracked"),
    ("robust_norm", "batch"),
]
longest = shown(profile)[-1]  # the profile with the longest training
epochs = [read_profile(longest)[training]["epochs"] for training in TRAININGS]
figure = accuracy_figure(longest, 2, list(TRAININGS), ["clean", "noise", "grad_sign", "pgd_linf"], SERIES)
gap = judge("longer-natural-attacks" if longest == "gpu" else "table2-natural-attacks", profile)
if teaser is not None:
    figure.savefig(teaser, dpi=130)
pages.show(
    figure,
    caption=(
        f"ResNet-20 after {epochs[0]} epochs of natural and {epochs[1]} of adversarial training, each"
        " evaluated with tracked and with batch statistics. BatchNorm, batch minus tracked, natural training,"
        f" in points, ours and in brackets the paper's: {ledger.differences(gap)}."
    ),
    alt=(
        "Accuracy clean and under three attacks after natural and adversarial training, the paper's numbers"
        " beside ours."
    ),
    notebook="index",
    profile=profile,
)

# %% tags=["remove-input"]
for name in reversed(shown(profile)):
    display(pages.setting(name))

# %% [markdown]
# ## Every claim of the paper
#
# A claim is a list of comparisons: one side is said to be ahead of another, or within a margin of it.
#
# * **Reproduced**: every comparison is clear, with its interval on the claimed side. **Partly**: some are.
# * **Not reproduced**: none is, and at least one is clear the other way round or a clear tie, or excludes a
#   number with which the paper supports the claim.
# * **Inconclusive**: none is, and none excludes the claim, nor such a number.
# * **Untested here**: the runs that it needs are not there.
#
# Hypotheses of our own are *supported* in place of *reproduced*. An octave is a factor of 2, a nat the unit
# of the cross-entropy.

# %% tags=["remove-input"]
ledger.table(profile)

# %% [markdown]
# ## Beyond the paper
#
# What has to be true if tracking is the cause, and other hypotheses of ours, tested on the same weights:

# %% tags=["remove-input"]
ledger.table(profile, "beyond")

# %% [markdown]
# All of it as data: <a href="_static/claims.json" download>claims.json</a> (verdicts and comparisons),
# <a href="_static/results.csv" download>results.csv</a> (every accuracy). `python -m study.report.claims`
# computes the verdicts again.

# %% [markdown]
# **Where to go.** {doc}`chapters/table2` is the heart of the argument, {doc}`chapters/longer` looks for its
# gap after a longer training and tests what it is, {doc}`chapters/fig1` looks at the mismatch itself,
# {doc}`chapters/table3` at RobustNorm. {doc}`background/normalisation` and {doc}`background/attacks` explain
# the equations. {doc}`run` says how to do all of it again; {doc}`api/index` documents the library.
