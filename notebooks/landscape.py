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
# # The loss landscape of one run
#
# A worker of the grid: samples the loss on a plane around the weights of a trained run, in both statistics
# modes, and measures how sharp it is.

# %% tags=["parameters"]
profile = "quick"  # quick, laptop, gpu or paper
experiment = None  # None: headline, or another of the profile
dataset = None  # None: the profile's, here and below; the run is named by the same settings as in train
architecture = None
norm = None
p = None
training = None
seed = None
epochs = None
device = None  # None: the GPU if there is one

# %%
from dataclasses import fields

from study.parameters import parameters
from study.runs import Run, make_run

given = parameters(globals(), [field.name for field in fields(Run)] + ["device"])
device = given.pop("device")
run = make_run(**given)
run

# %%
import pandas as pd

from study.report.figures import live
from study.planes import plane_run

with live() as progress:

    def on_mode(mode):
        progress.update({"text/plain": f"{mode} done"}, raw=True)

    rows = plane_run(run, device=device, on_mode=on_mode)

# %% [markdown]
# ## Summary

# %%
table = pd.DataFrame(rows, columns=["statistics", "loss"])  # no rows if training diverged
table.groupby("statistics").loss.describe().round(3)
