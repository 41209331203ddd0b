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
# (audit)=
# # Audit your own model
#
# :::{admonition} You will learn
# :class: tip
# - to find out with one call whether the answers of a model depend on the other images of a batch;
# - what the columns of the report mean, and what to do about each of them.
# :::
#
# Batch norm in training mode, adaptation at test time, or a norm that was left with the statistics of the
# batch make the answer for an image depend on its neighbours. {py:func}`rnlib.audit_batch_dependence`
# measures that for any PyTorch classifier of images in [0, 1]. Native batch norms are audited in a copy,
# so that your model stays as it is.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% [markdown]
# ## A model of torchvision
#
# Any model will do. Here a ResNet-18 with ten classes is trained for a few steps on the sample of
# Fashion-MNIST that comes with the repository, which takes seconds and is enough to see the effect:

# %% tags=["remove-output"]
import pandas as pd
import torch
import torchvision
from torch.nn import functional as F

import rnlib

torch.manual_seed(0)
images = rnlib.load("fashion-mnist-sample", "test")
images = images.subset(rnlib.data.test_order(len(images))[:200])
model = torchvision.models.resnet18(num_classes=10)
# One channel:
model.conv1 = torch.nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
training = rnlib.load("fashion-mnist-sample", "train")
generator = torch.Generator().manual_seed(0)
for x, y in rnlib.data.batches(
    training,
    100,
    generator=generator,
    augmented=True,
):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()

# %%
attack = rnlib.GradSign(rnlib.paper_eps(images.name))
report = rnlib.audit_batch_dependence(
    model,
    images,
    batch_sizes=[2, 20, 100],
    attack=attack,
)
report = pd.DataFrame(report)
report.round(2)

# %% [markdown]
# Each row is a way of making batches of the same images. *changed* is the share of images with another
# answer than in mixed batches of the largest size, *moved* how far the class probabilities went (total
# variation, 0 to 1). With tracked statistics both are 0 up to rounding: each image is seen by itself. With
# batch statistics they are not, and `sorted` batches, as a loader makes them that reads one folder a
# class, are the worst. *robust_accuracy* is that under the attack, crafted in each batch as it is; without
# `attack` the column is empty and the report takes a fraction of the time.
#
# ## The report as a figure
#
# For the networks of this book {ref}`e13` does the same, with intervals.

# %% tags=["hide-input"]
from IPython.display import display

from study.report import pages, panels
from study.report.figures import style

style()
n = len(images)
clean = report.assign(panel="clean, " + report.composition)
fooled = report.assign(panel="GradSign, " + report.composition, accuracy=report.robust_accuracy)
table = pd.concat([clean, fooled]).assign(n=n)
table["correct"] = (table.accuracy * n / 100).round().astype(int)
worst = report[report.statistics == "batch"].sort_values("changed").iloc[-1]
display(
    pages.show(
        panels.lines(
            table, x="batch_size", series="statistics", looks=panels.look("batch_norm"), panel="panel",
            xlabel="images in a batch", xscale="log", columns=3, height=2.6,
        ),
        caption=(
            f"The audit of the network above, {n} images of {images.name}. With batch statistics up to"
            f" {worst.changed:.0f}% of the answers change with the batch ({worst.composition}, batches of"
            f" {worst.batch_size}); with tracked ones"
            f" {report[report.statistics == 'tracked'].changed.max():.0f}%."
        ),
        alt="Accuracy against batch size, clean and attacked, for mixed, reshuffled and sorted batches.",
        notebook="audit",
        profile=profile,
    )
)  # fmt: skip

# %% [markdown]
# ## What to do about it
#
# * *changed* is 0 in every row of the mode that you deploy: answers do not depend on the batch. There is
#   nothing to do.
# * *changed* is above 0 under `tracked` or `none`: something else couples images, attention over the batch
#   or a norm of your own. Find the layer.
# * Accuracy under `batch` falls at small sizes: statistics of few images are noise. Use tracked
#   statistics, or larger batches.
# * Accuracy under `batch` falls for `sorted`: the classes of a batch are part of its statistics. Mix
#   batches, and do not let one client fill a batch.
# * Robust accuracy is higher under `batch`: perhaps only for images that are attacked together, and under
#   this attack. Attack single images ({ref}`e05`), and with more than one attack ({ref}`e04`).
# * Accuracy under `tracked` is far below that under `batch`: the averages do not fit the data. Renew them
#   with {py:func}`rnlib.recalibrate` on clean images of the kind that you serve.
#
# ## Run it again
#
# ```
# papermill notebooks/audit.ipynb out.ipynb -p profile laptop
# ```
