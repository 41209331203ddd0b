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
# # Probe the statistics of one run
#
# A worker of the grid: compares, channel by channel, what the norm layers of a trained run see in a batch
# with what they have tracked: at the start of training, and with the trained weights on training, clean,
# noisy and adversarial images.

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

from study.report.figures import style
from study.probe import probe_run

style()
columns = ["condition", "shift_abs", "log_ratio_abs"]
table = pd.DataFrame(probe_run(run, device=device), columns=columns)  # no rows if training diverged

# %% [markdown]
# ## Summary
#
# Median over channels of the absolute shift of the centre (in units of the tracked spread) and of the
# absolute log2 ratio of spreads.

# %%
table.groupby("condition", sort=False).median().round(3)
