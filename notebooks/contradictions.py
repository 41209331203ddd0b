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
# (contradictions)=
# # The paper against itself
#
# :::{admonition} What this page is
# Before any experiment: what the paper's own tables say of the paper's text, and of each other. Every count
# below is computed from its numbers, which `data/paper` holds. Where our runs bear on the same point, they
# stand beside.
# :::
#
# ## The experiment
#
# None. An *attack cell* is one network, one data set and one of GradSign, BIM and PGD: with four networks and
# two data sets, Tables 4 and 5 have 24 for each kind of training, each of a single training. Tables 2 and 3
# are means of five.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib import pyplot as plt

from study.report import beside, ledger, pages, panels, results
from study.report.beside import EQUAL, HIGHER, LOWER, counted
from study.report.figures import ATTACKS, PALETTE, SERIES, style

style()
BN, BNW = ("batch_norm", "tracked"), ("batch_norm", "batch")
RN, RNT = ("robust_norm", "batch"), ("robust_norm", "tracked")
TRAININGS = ("natural", "adversarial")
NAMES = {pair: SERIES[pair][0] for pair in (BN, BNW, RN, RNT)}
published, ours = beside.published(), results.table(profile, "evaluations")
display(pages.setting(profile))


def part(pairs, **where):
    return results.select(pairs, where)


def is_vgg(table):
    return table.architecture.str.startswith("vgg")


# %% [markdown]
# ## Which norm is ahead in Tables 4 and 5
#
# Three statements of the text: without tracking BatchNorm is more robust; RobustNorm is more robust than
# either BatchNorm, "in almost all" experiments; RobustNorm with tracking is more robust than BatchNorm.

# %% tags=["hide-input"]
PAIRS = [(BN, BNW), (BNW, RN), (BN, RNT)]
met = [beside.cells(*pair) for pair in PAIRS]
parts = [
    f"{NAMES[second]} is ahead of {NAMES[first]} in "
    + " and ".join(f"{counted(part(pairs, training=t))} cells of {t} training" for t in TRAININGS)
    for (first, second), pairs in zip(PAIRS, met, strict=True)
]
pages.show(
    beside.diagonal_figure(
        list(zip(("First statement", "Second statement", "Third statement"), met, strict=True)),
        [(NAMES[first], NAMES[second]) for first, second in PAIRS],
    ),
    caption="The paper's accuracies under attack, one point a cell. " + "; ".join(parts) + ".",
    alt=(
        "Three squares with a diagonal: BatchNorm without tracking against BatchNorm, RobustNorm against"
        " BatchNorm without tracking, RobustNorm with tracking against BatchNorm."
    ),
    notebook="contradictions",
    profile=profile,
)

# %% tags=["hide-input"]
natural = part(met[1], training="natural")
vgg = natural[is_vgg(natural)]
ties = part(met[1], side=EQUAL)
zero = part(met[2], second=0.0)
live = part(met[2][met[2].second > 0], training="adversarial")
by_dataset = " and ".join(
    f"{counted(part(met[2], training='natural', dataset=name))} on {label}"
    for name, label in beside.DATASETS.items()
)
Markdown(
    "* The first statement holds without an exception.\n"
    f"* The second holds after adversarial training ({counted(part(met[1], training='adversarial'))} cells,"
    f" and {len(ties)} tie). After natural training it fails in {counted(natural, LOWER)} cells, so that as a"
    f" statement on the norm it has no support there; {len(vgg)} of all cells are those of the VGGs, and"
    f" RobustNorm is behind in {counted(vgg, LOWER)} of them.\n"
    f"* Of the third, {len(zero)} cells of adversarial training belong to a row of zeros (below). Without it"
    f" RobustNorm with tracking is ahead in {counted(live)}; after natural training in"
    f" {counted(part(met[2], training='natural'))}: {by_dataset}."
)

# %% [markdown]
# *What it could mean.* One training a cell, and differences of a point or two in many of them: much of the
# second statement, and of the third after natural training, is within what another seed may change. The VGG
# cells are not, as follows.
#
# ## VGGs after natural training

# %% tags=["hide-input"]
pair = beside.cells(BN, RN)
against = part(pair[is_vgg(pair)], training="natural")
ahead = " and ".join(ATTACKS[name] for name in dict.fromkeys(part(against, side=HIGHER).attack))
shown = part(published[is_vgg(published)], training="natural")
shown = beside.series(shown[shown.attack.isin(beside.ATTACK_CELLS)]).assign(paper=shown.accuracy)
shown["panel"] = shown.architecture.map(beside.ARCHITECTURES) + ", " + shown.dataset.map(beside.DATASETS)
pages.show(
    panels.categories(
        shown,
        x="attack",
        series="series",
        looks=beside.looks([BN, BNW, RN, RNT]),
        panel="panel",
        titles={name: name for name in shown.panel},
        labels=ATTACKS,
        value="paper",
        columns=4,
        height=3.0,
        rotation=30,
    ),
    caption=(
        "The paper's VGGs after natural training. RobustNorm is behind BatchNorm without tracking in"
        f" {counted(vgg, LOWER)} cells, and behind BatchNorm itself in {counted(against, LOWER)}; it is ahead"
        f" of BatchNorm under {ahead} only."
    ),
    alt="Accuracy under three attacks of four norms, a panel for each VGG and data set.",
    notebook="contradictions",
    profile=profile,
)

# %% [markdown]
# *What it could mean.* RobustNorm falls behind BatchNorm under one step and under PGD, and less or not at all
# under BIM, which differs from PGD by a random start. It is hard to think of a property of the norm that
# explains both. An attack that fails for want of a gradient would: next section. Our own VGG-11:

# %% tags=["hide-input"]
ledger.summary(profile, ["table4-vgg11-robust-norm", "table4-resnet38-robust-norm"])

# %% [markdown]
# ## One step against many
#
# Twenty steps of eps / 10 can go wherever one step of eps goes, and look at the gradient on the way. Where
# BIM leaves *more* accuracy than GradSign it did not find what is there; {cite:t}`athalye2018` name this
# first among the signs of masked gradients.

# %% tags=["hide-input"]
bim, pgd = (beside.attacks(published, "grad_sign", name) for name in ("bim_linf", "pgd_linf"))
our_bim = beside.attacks(ours, "grad_sign", "bim_linf")
above = part(bim, side=HIGHER).sort_values("first")
told = "ours have not been measured yet" if our_bim.empty else f"ours lie above in {counted(our_bim)} rows"
pages.show(
    beside.diagonal_figure(
        [("The paper: BIM", bim), ("The paper: PGD", pgd), ("Ours: BIM", our_bim)],
        [("GradSign", "BIM"), ("GradSign", "PGD"), ("GradSign", "BIM")],
    ),
    caption=(
        "Accuracy under one step and under twenty. Above the diagonal the twenty steps are the weaker attack:"
        f" in {counted(bim)} rows of Tables 4 and 5 for BIM ({counted(part(bim, training='natural'))} after"
        f" natural training), in {counted(pgd)} for PGD; {told}."
    ),
    alt=(
        "Three squares with a diagonal: BIM and PGD against GradSign in the paper, BIM against GradSign in"
        " our runs."
    ),
    notebook="contradictions",
    profile=profile,
)

# %% tags=["hide-input"]
named = pd.DataFrame({
    "network": above.architecture.map(beside.ARCHITECTURES),
    "data": above.dataset.map(beside.DATASETS),
    "norm": [NAMES[pair] for pair in zip(above.norm, above.statistics, strict=True)],
    "training": above.training,
    "GradSign": above["first"],
    "BIM": above.second,
})  # fmt: skip
named.assign(**{"BIM minus GradSign": (named["BIM"] - named["GradSign"]).round(2)}).set_index("network")

# %% [markdown]
# *What it could mean.* For BIM in these rows, and so possibly in others where nothing gives it away, the
# accuracies are upper bounds that are not tight. The row with the largest gap is RobustNorm's, and
# RobustNorm is the norm whose accuracy under BIM at large eps the paper takes for robustness ({doc}`fig4`).
# A BIM of twenty steps that are too small would explain it too; but the same twenty steps, as PGD, find what
# BIM misses.
#
# ## PGD against BIM
#
# In the released code the two are the same loop, PGD with a random start. On one network they should differ
# by little.

# %% tags=["hide-input"]
theirs = beside.attacks(published, "bim_linf", "pgd_linf")
live = theirs[theirs["first"] > 0]
our_pairs = beside.attacks(ours, "bim_linf", "pgd_linf")
strips = pd.concat([live.assign(whose="the paper"), our_pairs.assign(whose="ours")])
strips["gap"] = strips.second - strips["first"]
figure, axis = plt.subplots(figsize=(9, 2.8))
sns.stripplot(
    strips, x="gap", y="training", hue="whose", order=TRAININGS, hue_order=["the paper", "ours"], dodge=True,
    palette=[PALETTE[0], PALETTE[1]], jitter=0.15, alpha=0.7, ax=axis,
)  # fmt: skip
axis.axvline(0, color="0.5", linewidth=1)
axis.set(xlabel="accuracy under PGD minus accuracy under BIM (points)", ylabel="")
axis.get_legend().remove()
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
sides = {
    whose: ", ".join(
        f"{counted(rows)} of {training} training"
        for training in TRAININGS
        if len(rows := part(table, training=training))
    )
    for whose, table in (("the paper's", live), ("ours", our_pairs))
}
pages.show(
    figure,
    caption=(
        "Right of the line PGD is the weaker attack. Rows there: "
        + "; ".join(f"{whose} {said or 'not measured yet'}" for whose, said in sides.items())
        + "."
    ),
    alt="Two strips of points, a row for each training: accuracy under PGD minus accuracy under BIM.",
    notebook="contradictions",
    profile=profile,
)

# %% [markdown]
# *What it could mean.* Nearly all of the paper's rows lie on one side after natural training, and most on the
# other after adversarial training, which is no chance. Where PGD finds much more than BIM, the gradient at
# the image itself, where BIM starts, is a poor guide. Where BIM finds a little more, the random start has
# cost PGD some of its steps. Ours show what the two do on the same weights with the same steps, in which
# direction and how far. Steps, or numbers of steps, that differ between the attacks could make gaps like the
# paper's; it does not give them.
#
# ## Networks that lose their clean accuracy
#
# Clean accuracy after adversarial training, all networks of the paper:

# %% tags=["hide-input"]
clean = pd.concat([results.paper(3), published])
clean = beside.series(part(clean, attack="clean", training="adversarial"))
clean = clean.assign(paper=clean.accuracy, panel=clean.dataset.map(beside.DATASETS))
low = part(clean, statistics="tracked").sort_values("paper").groupby("panel").head(3)
worst = part(clean, statistics="batch").paper.groupby(clean.dataset).min()
listed = ", ".join(
    f"{beside.ARCHITECTURES[row.architecture]} on {row.panel},"
    f" {NAMES[row.norm, row.statistics]}: {row.paper:g}"
    for row in low.itertuples()
)
pages.show(
    panels.categories(
        clean.sort_values(["panel", "architecture"]),
        x="architecture",
        series="series",
        looks=beside.looks([BN, BNW, RN, RNT]),
        panel="panel",
        titles={name: name for name in clean.panel},
        labels=beside.ARCHITECTURES,
        value="paper",
        ylabel="clean accuracy (%)",
        rotation=30,
    ),
    caption=(
        f"Clean accuracy after adversarial training in the paper. Lowest: {listed}. With batch statistics no"
        " network is below "
        + ", ".join(f"{value:g} on {beside.DATASETS[name]}" for name, value in worst.items())
        + "."
    ),
    alt="Clean accuracy of four norms for each network, a panel for each data set.",
    notebook="contradictions",
    profile=profile,
)

# %% tags=["hide-input"]
seeds = results.select(results.evaluations(profile), {"training": "adversarial", "attack": "clean"})
seeds = seeds[seeds.norm != "no_norm"]
spread = seeds.groupby(["norm", "statistics"], sort=False).accuracy.agg(["std", "count"])
told = ", ".join(f"{NAMES[key]} {row['std']:.1f}" for key, row in spread.iterrows() if row["count"] > 1)
five = part(results.paper(3), dataset="cifar10", training="adversarial")
theirs = ", ".join(
    f"{NAMES[row.norm, row.statistics]} ± {row.ci95:g}" for row in five.sort_values("ci95").itertuples()
)
Markdown(
    f"Over five trainings of ResNet-20 on CIFAR-10 the paper has: {theirs}. Standard deviation over our"
    f" seeds, in points: {told or 'needs two seeds, which are not there yet'}."
)

# %% [markdown]
# *What it could mean.* If the two rows of a norm are the same weights with tracked and with batch statistics,
# then with batch statistics these are fine. A network that loses a quarter of its *clean* accuracy, or all of
# it, by exchanging statistics has averages that do not describe it: a failure of the averaging, eleven
# updates a step while images are attacked ({doc}`/background/paper-and-code`). To call the loss under attack
# of such a network a lack of robustness is to count the same failure twice. A row that is 0 on ten classes,
# where guessing has 10, is a broken evaluation and no accuracy. {doc}`e09` tests this reading.
#
# ## The same cell in Tables 2 and 3
#
# Clean accuracy of ResNet-20 with BatchNorm on CIFAR-10 stands in both tables, each time as a mean of five
# restarts:

# %% tags=["hide-input"]
both = pd.concat([results.paper(2), results.paper(3)])
both = part(both, dataset="cifar10", attack="clean", norm="batch_norm")
both["text"] = [f"{row.accuracy:.2f} ± {row.ci95:g}" for row in both.itertuples()]
both["norm"] = [NAMES[pair] for pair in zip(both.norm, both.statistics, strict=True)]
twice = both.pivot(index=["training", "norm"], columns="table", values="text")
twice["same"] = ["yes" if row[2] == row[3] else "no" for _, row in twice.iterrows()]
twice.rename(columns={2: "Table 2", 3: "Table 3"}).sort_index(ascending=False)

# %% [markdown]
# *What it could mean.* The adversarial cells are the same numbers, the natural ones are not: natural
# training was run, or evaluated, more than once, and adversarial training once. The differences are small
# beside the intervals. But they show that a row of one table and a row of another need not be one network.
#
# ## "20%" and "up to 30%"
#
# The introduction says that removing tracking adds 20% of robustness, and that adversarial training adds up
# to 30% further. Five readings, each the difference of two accuracies under attack, in points:

# %% tags=["hide-input"]
READINGS = {
    "no tracking, natural": ((BNW, "natural"), (BN, "natural")),
    "no tracking, adversarial": ((BNW, "adversarial"), (BN, "adversarial")),
    "adversarial training, tracking": ((BN, "adversarial"), (BN, "natural")),
    "adversarial training, no tracking": ((BNW, "adversarial"), (BNW, "natural")),
    "both together": ((BNW, "adversarial"), (BN, "natural")),
}
KEYS = ["table", "dataset", "architecture", "attack"]
every = pd.concat([results.paper(2), published])
every = every[every.attack.isin(beside.ATTACK_CELLS)].set_index(KEYS)


def accuracies(side):
    (norm, mode), training = side
    return results.select(every, {"norm": norm, "statistics": mode, "training": training}).accuracy


gains = pd.concat(
    {name: accuracies(high) - accuracies(low) for name, (high, low) in READINGS.items()}, names=["reading"]
)
gains = gains.rename("gain").reset_index()
gains["source"] = "Table " + gains.table.astype(str)
figure, axis = plt.subplots(figsize=(9, 3.4))
sns.stripplot(
    gains, x="gain", y="reading", hue="source", dodge=True, jitter=0.1, alpha=0.75, ax=axis,
    palette=PALETTE[:3],
)  # fmt: skip
for size in (20, 30):
    axis.axvline(size, color="0.4", linewidth=1, linestyle="--")
axis.set(xlabel="gain (points)", ylabel="")
axis.get_legend().remove()
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
mine = gains[gains.table == 2].groupby("reading", sort=False).gain
told = "; ".join(f"{name} {rows.min():.1f} to {rows.max():.1f}" for name, rows in mine)
largest = gains.groupby(["source", "reading"], sort=False).gain.max()
near = largest[(largest - 30).abs() < 1]
said = (
    ", ".join(f"{name} in {source} ({value:.1f})" for (source, name), value in near.items())
    or "no reading in any table"
)
pages.show(
    figure,
    caption=(
        f"Gains in points; dashed, 20 and 30. Table 2: {told}. Readings whose largest gain lies within a"
        f" point of 30: {said}."
    ),
    alt="Strips of gains in points for five readings, a colour for each table, with lines at 20 and 30.",
    notebook="contradictions",
    profile=profile,
)

# %% [markdown]
# *What it could mean.* 20 is the gain from removing tracking in Table 2, in points of accuracy and not in
# percent of it. A reading that the caption names could be what "up to 30%" means; if it names none, no table
# has that number.
#
# ## Slips of the text
#
# * **Table 1** is cited for the results of ResNet-20, and no table has that number. Table 2 is meant.
# * **Eq 6** equates a variance with a square root; what is divided by in Eq 7 is the root.
# * **Carlini-Wagner** takes two equations of the paper.

# %% tags=["hide-input"]
known = sorted({name for number in (2, 3, 4, 5) for name in results.paper(number).attack})
Markdown(
    f"The paper's tables have {', '.join(ATTACKS[name] for name in known)}, "
    + ("and Carlini-Wagner" if "cw_l2" in known else "and no Carlini-Wagner")
    + ". Ours is in the tables of {doc}`table2`."
)

# %% [markdown]
# * **Fig 4**, of CIFAR-10, refers "for same curves on CIFAR10" to the appendix, where Fig 6 has CIFAR-100.
# * **Fig 9** has its columns as natural and adversarial training in one order in the caption, and in the
#   other in what stands under the panels ({doc}`fig9`).
# * **Table 3** is said to show RobustNorm with tracking ahead of BatchNorm in the text, and to show the same
#   accuracy in its own caption. After natural training its numbers are the caption's, after adversarial
#   training the text's.
# * **VGG-16**, Table 4: a decimal comma makes one BIM cell "65,28"; `data/paper` has it as a number.
#
# ## What it means
#
# * None of this refutes the paper. It says which of its rows can carry a conclusion: those on BatchNorm with
#   and without tracking after natural training, which agree in sign in all 24 cells and are of large effect,
#   though a few of them show the sign of masked gradients above.
# * The rows of adversarial training with tracked statistics measure how averages fail, before they measure
#   robustness.
# * The case for RobustNorm's robustness after natural training rests on the ResNets, by the few points that
#   the figure shows, with one training for each. On the VGGs it is ahead of BatchNorm under BIM only, where
#   BIM is too weak.
#
# ## Run it again
#
# ```
# papermill notebooks/contradictions.ipynb out.ipynb -p profile laptop
# pytest tests/test_paper_tables.py tests/test_beside.py       # the counts, computed in another way
# ```
