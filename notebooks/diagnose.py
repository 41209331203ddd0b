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
# # Diagnose one run
#
# A worker of the grid: one experiment on the weights of a trained run. `diagnostic` names
# it: transfer, transfer_8px, independent, ladder, adequacy, fraction, neighbours, black_box, units, eps,
# batch_size, jitter, composition, snapshots, code_path or spreads.

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
diagnostic = "transfer"
device = None  # None: the GPU if there is one

# %%
from dataclasses import fields

from study.parameters import parameters
from study.runs import Run, make_run

given = parameters(globals(), [field.name for field in fields(Run)] + ["device", "diagnostic"])
device, diagnostic = given.pop("device"), given.pop("diagnostic")
run = make_run(**given)
run

# %%
import pandas as pd

from study.experiments.diagnostics import diagnose_run
from study.report.figures import live

with live() as progress:

    def on_cell(row):
        progress.update({"text/plain": str(row)}, raw=True)

    rows = diagnose_run(run, diagnostic, device=device, on_cell=on_cell)

# %% [markdown]
# ## Summary

# %%
table = pd.DataFrame(rows or {"accuracy": []})  # no rows if training diverged
table.loc[:, :"accuracy"].round(1)
