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
# # Evaluate one run
#
# A worker of the grid: measures the weights of a trained run in both statistics modes, clean and under
# every attack of the paper. What is measured already is not repeated; each result is written as soon as it
# is there.

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
from IPython.display import display
from matplotlib import pyplot as plt

from study.report.figures import evaluation_figure, live, style
from study.work import evaluate_run

style()
chart = display({"text/plain": ""}, raw=True, display_id=True)
shown = []

with live() as progress:

    def on_evaluation(evaluation):
        shown.append(evaluation)
        progress.update(
            {"text/plain": f"{len(shown)} done, the last: {evaluation.statistics} {evaluation.attack}"},
            raw=True,
        )

    rows = evaluate_run(run, device=device, on_evaluation=on_evaluation)

if rows:  # none if training diverged
    figure = evaluation_figure(rows, run.name)
    chart.update(figure)
    plt.close(figure)

# %% [markdown]
# ## Summary

# %%
import pandas as pd

table = pd.DataFrame(rows, columns=["attack", "statistics", "accuracy", "n", "seconds"])
print(f"{run.name}: {len(table)} evaluations of {table.n.max()} images in {table.seconds.sum():.0f} s")
table.pivot(index="attack", columns="statistics", values="accuracy").loc[table.attack.unique()].round(1)
