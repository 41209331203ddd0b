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
# # Train one run
#
# A worker of the grid: `papermill notebooks/train.ipynb out.ipynb -p norm robust_norm -p training
# adversarial`. Settings that are not given are those of the profile (`profiles/<profile>.yml`); all of them
# are fields of `study.runs.Run`. A run that is there is not repeated, one that was cut short goes on
# after its last epoch. A training that diverges is a result as well: `diverged.json` says where.

# %% tags=["parameters"]
profile = "quick"  # quick, laptop, gpu or paper
experiment = None  # None: headline, or another of the profile
dataset = None  # None: the profile's, here and below
architecture = None  # resnet20, resnet38, vgg11, ...
norm = None  # batch_norm, robust_norm, no_norm, min_max_norm, group_norm, ...: see rnlib.make_norm
p = None  # power of robust_norm or sigma_norm
training = None  # natural or adversarial
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
from time import perf_counter

from IPython.display import display
from matplotlib import pyplot as plt

from study.report.figures import history_figure, live
from study.store import has_diverged
from study.work import train_run, training_set

steps = -(-len(training_set(run)) // run.batch_size)
done, start = 0, perf_counter()
curves = display({"text/plain": ""}, raw=True, display_id=True)

with live() as progress:

    def on_step():
        global done
        done += 1
        if done % 10 == 0:
            rate = (perf_counter() - start) / done
            progress.update(
                {"text/plain": f"step {done} of at most {steps * run.epochs}, {rate:.2f} s each"}, raw=True
            )

    def on_epoch(history):
        figure = history_figure(history, run.name)
        curves.update(figure)
        plt.close(figure)

    history = train_run(run, device=device, on_epoch=on_epoch, on_step=on_step)

if history:
    on_epoch(history)

# %% [markdown]
# ## Summary

# %%
import pandas as pd

outcome = "diverged after them, see diverged.json" if has_diverged(run) else "weights"
print(
    f"{run.name}: {len(history)} epochs in {sum(record['seconds'] for record in history):.0f} s, {outcome} in"
    f" {run.directory.name}/"
)
pd.DataFrame(history, columns=list(history[0]) if history else ["epoch"]).set_index("epoch").round(3)
