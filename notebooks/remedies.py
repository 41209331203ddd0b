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
# (remedies)=
# # Section 5: the remedies, and E10: norms without a mismatch
#
# :::{admonition} The claim
# To use the tracked values in training as well would do away with the mismatch of statistics; but that makes
# the model blow up. Batch Renormalization needs careful tuning, and GroupNorm, weight normalisation and
# normalisation propagation have challenges of their own (Section 5). The paper tries none of them.
# :::
#
# :::{admonition} The hypothesis
# E10: if the mismatch between training and inference is what makes BatchNorm vulnerable, then a norm that
# never had a mismatch is more robust than BatchNorm with tracked statistics.
# :::
#
# ## The experiment
#
# Every remedy that Section 5 names is trained, and two controls of ours, frozen statistics and no norm with a
# bias, with all else alike, on the small budget that all norms of the book share:
#
# * **tracked values in training** ({py:class}`rnlib.remedies.TrackedNorm`): the running statistics normalise
#   in training too, without a gradient through them {cite:p}`ioffe2015`;
# * **Batch Renormalization** ({py:class}`rnlib.remedies.BatchRenorm`): the batch, corrected towards the
#   running statistics by factors without a gradient {cite:p}`ioffe2017`; one linear schedule for both limits;
# * **frozen statistics** ({py:class}`rnlib.remedies.FrozenNorm`): those of the first batch, for ever;
# * **GroupNorm** with 8 groups {cite:p}`wu2018`;
# * **weight normalisation** {cite:p}`salimans2016` and **normalisation propagation** {cite:p}`arpit2016`,
#   which normalise the filters instead of the activations;
# * **no norm with a bias**: the paper's networks without norm have no bias either, which is unfair to them.
#
# The last five take nothing from the batch at hand, in training or later: one network, one mode. Learning
# rates are the common one where it trains, and else the largest that did in a short trial
# (`profiles/laptop.yml`).

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import ATTACKS, PALETTE, style

style()
NORMS = {
    "batch_norm": "BatchNorm",
    "tracked_norm": "tracked in training",
    "batch_renorm": "Batch Renorm.",
    "group_norm": "GroupNorm",
    "frozen_norm": "frozen",
    "weight_norm": "weight norm.",
    "norm_prop": "norm. propagation",
    "no_norm_bias": "no norm, bias",
}
LOOKS = {
    "tracked": ("tracked statistics", PALETTE[0], ""),
    "none": ("no statistics of a batch", PALETTE[2], ""),
    "batch": ("batch statistics", PALETTE[1], ""),
}
REMEDIES = ["remedies-blow-up", "remedies-tracked-clean", "remedies-challenges", "remedies-renorm-clean"]
E10 = ["e10-natural", "e10-adversarial", "e10-others", "e10-tracked", "e10-lost", "e10-renorm-gap"]
TITLES = {training: f"{training.capitalize()} training" for training in ("natural", "adversarial")}
pages.setting(profile, "short", lambda run: run.norm in NORMS)

# %% [markdown]
# ## Do they train?

# %% tags=["hide-input"]
curves = results.select(results.curves(profile), {"experiment": "short"})
curves = curves[curves.norm.isin(list(NORMS))].drop_duplicates(["run", "epoch"])
ends = results.select(results.divergence(profile), {"experiment": "short"})
if len(ends):
    ends = ends[ends.norm.isin(list(NORMS))].groupby(["norm", "training"], sort=False).diverged.max()
    done = [f"{NORMS[norm]} ({training})" for (norm, training), over in ends.items() if over]
    told = f"Of {len(ends)} trainings {len(done)} diverged" + (f": {', '.join(done)}." if done else ".")
    display(Markdown(told))
if len(curves):
    display(
        pages.show(
            panels.lines(
                curves,
                x="epoch",
                series="norm",
                looks=panels.names(list(NORMS), NORMS),
                panel="training",
                titles=TITLES,
                xlabel="epoch",
                value="train_loss",
                ylabel="training loss",
                height=3.6,
            ),
            caption=f"Training loss by epoch, of the epochs that ended with finite numbers. {told}",
            alt="Training loss along the epochs for BatchNorm and seven remedies, a panel a training.",
            notebook="remedies",
            profile=profile,
        )
    )
else:
    display(Markdown("None of these trainings has been run yet."))

# %% tags=["hide-input"]
for claim in REMEDIES:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## Clean and robust

# %% tags=["hide-input"]
table = results.evaluations(profile, "short")
table = table[table.norm.isin(list(NORMS))].sort_values(
    "norm", key=lambda names: names.map(list(NORMS).index), kind="stable"
)
claims = {"natural": "e10-natural", "adversarial": "e10-adversarial"}
for training, claim in claims.items():
    part = results.select(table, {"training": training})
    if part.empty:
        display(Markdown(f"Nothing has been evaluated yet after {training} training."))
        continue
    part = part.sort_values("attack", key=lambda names: names.map(list(ATTACKS).index), kind="stable")
    display(
        pages.show(
            panels.categories(
                part,
                x="norm",
                series="statistics",
                looks=LOOKS,
                panel="attack",
                labels=NORMS,
                titles=ATTACKS,
                columns=2,
                height=3.0,
                rotation=30,
            ),
            caption=(
                f"{TITLES[training]}, clean and attacked, with 95% intervals over images. GroupNorm minus"
                f" BatchNorm with tracked statistics, in points: {ledger.differences(judge(claim, profile))}."
            ),
            alt="Accuracy clean, under noise, GradSign and PGD for BatchNorm and the remedies.",
            notebook="remedies",
            profile=profile,
        )
    )

# %% tags=["hide-input"]
for claim in E10:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# First side minus second, in percentage points over the same images; one seed each. Divergence is 1 or 0. For
# lost points it is the difference under PGD beyond that on clean images.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in REMEDIES + E10])

# %% [markdown]
# ## What it means
#
# * Two readings of robustness err in opposite directions. Accuracy under attack is against a norm that learns
#   slowly, for what is wrong on the clean image is wrong under attack. Points lost from clean to attacked are
#   in its favour, for it has fewer to lose. E10 is answered where both agree.
# * If layers without a mismatch lose as much as tracked BatchNorm, the mismatch did not cost it anything, and
#   what these networks share explains their vulnerability better. If they keep clearly more, the mismatch
#   remains a suspect, beside all else in which they differ.
# * With batch statistics a remedy such as Batch Renormalization is attacked through statistics that the
#   tracked mode does not have. Training brings its two modes together, so that a small gap is no surprise.
# * To blow up takes time: without a gradient through the statistics, nothing keeps the scale of the weights
#   from growing but weight decay. A short training that stays finite does not show that a long one would.
#
# ## Run it again
#
# ```
# papermill notebooks/train.ipynb out.ipynb -p profile laptop -p experiment short -p norm group_norm
# papermill notebooks/evaluate.ipynb out.ipynb -p profile laptop -p experiment short -p norm group_norm
# papermill notebooks/remedies.ipynb out.ipynb -p profile laptop
# ```
