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
# (norms-at-work)=
# # What the norms do to an activation
#
# :::{admonition} You will learn
# :class: tip
# - how Eq. 11, 12 and 14 and BatchNorm treat one and the same heavy-tailed channel;
# - what the power $p$ trades: at $p = 1$ the scale of the input does not matter, at $p = 0.2$ nearly all of
#   it passes;
# - what one outlier does to each of them;
# - how the denominators depend on the size of the batch.
# :::
#
# No network and no data set here: random numbers through the layers of `rnlib`, before scale and shift are
# learned. The equations are those of [](../background/normalisation.md).

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # this page needs no results and is the same in every profile

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch

import rnlib
from study.report import pages
from study.report.figures import PALETTE, style

style()
generator = np.random.default_rng(0)
N, H, W = 100, 32, 32  # the paper's inference batch, and the images of CIFAR

NORMS = {
    "BatchNorm": (lambda: rnlib.BatchNorm(1), PALETTE[0], "-"),
    "Eq. 11, min-max": (lambda: rnlib.MinMaxNorm(1), PALETTE[3], ":"),
    "Eq. 12, p = 1": (lambda: rnlib.MeanRangeNorm(1), PALETTE[4], "-."),
    "RobustNorm, p = 0.2": (lambda: rnlib.RobustNorm(1, p=0.2), PALETTE[2], "--"),
}


def through(layer, x):
    """What a new layer makes of a channel (N, pixels) with its batch statistics; same shape."""
    batch = torch.from_numpy(x).float().reshape(len(x), 1, -1, 1)
    with torch.no_grad():
        return layer.train()(batch).numpy().reshape(x.shape)


# Heavy tails: Student's t with 4 degrees of freedom, scaled to standard deviation 1.
channel = generator.standard_t(4, (N, H * W))
channel /= channel.std()

# %% [markdown]
# ## One heavy-tailed channel
#
# The channel has $M = 102{,}400$ numbers with standard deviation 1 and heavier tails than a Gaussian, as
# activations of trained networks often have.

# %% tags=["hide-input"]
figure, axes = plt.subplots(2, 2, figsize=(9, 5))
spread = {}
for axis, (name, (make, colour, _)) in zip(axes.flat, NORMS.items(), strict=True):
    y = through(make(), channel).ravel()
    spread[name] = y.std()
    axis.hist(y, bins=np.linspace(-4, 4, 321), density=True, color=colour, histtype="stepfilled", linewidth=0)
    axis.set(title=f"{name}: standard deviation {y.std():.3f}", xlim=(-4, 4), ylabel="density")
for axis in axes[1]:
    axis.set_xlabel("output")
pages.show(
    figure,
    caption=f"One heavy-tailed channel after each norm, on one scale. Its range is {np.ptp(channel):.0f} "
    f"standard deviations, so Eq. 11 and 12 leave a spread of {spread['Eq. 12, p = 1']:.3f}; "
    f"RobustNorm leaves {spread['RobustNorm, p = 0.2']:.2f}, BatchNorm 1.",
    alt="Four histograms: BatchNorm and RobustNorm bells around 0, Eq. 12 a spike at 0, Eq. 11 one at 0.5.",
    notebook="background",
    profile=profile,
)

# %% [markdown]
# The range of this channel is far from the two standard deviations that [Popoviciu's inequality](#eq-13)
# guarantees. That is the paper's observation that Eq. 12 suppresses activations. None of the norms removes
# outliers: each is an affine map of the channel, so that the largest number is as many standard deviations
# from the mean after it as before.
#
# ## The power
#
# The same channel, wider and narrower, through RobustNorm with powers from 0 (only the mean is subtracted) to
# 1 (Eq. 12).

# %% tags=["hide-input"]
powers = np.linspace(0, 1, 21)
scales = {10.0: (PALETTE[4], "--"), 1.0: (PALETTE[2], "-"), 0.1: (PALETTE[1], ":"), 0.01: (PALETTE[3], "-.")}
figure, axis = plt.subplots(figsize=(7, 4))
after = {}
for scale, (colour, line) in scales.items():
    after[scale] = [through(rnlib.RobustNorm(1, p=float(p)), scale * channel).std() for p in powers]
    axis.plot(powers, after[scale], line, color=colour, label=f"RobustNorm, input std {scale:g}")
axis.axhline(1, color=PALETTE[0], linewidth=1, label="BatchNorm, any input")
axis.axvline(0.2, color="0.6", linewidth=1)
axis.text(0.21, 0.02, "the paper's p", color="0.35", transform=axis.get_xaxis_transform())
axis.set(yscale="log", xlabel="power p", ylabel="standard deviation of the output")
axis.legend(fontsize="small", loc="upper right")
at = {scale: after[scale][4] for scale in scales}
pages.show(
    figure,
    caption="Spread after RobustNorm against p. At p = 1 the scale of the input is gone; at p = 0.2 inputs "
    f"that differ by a factor of 100 still differ by {at[10.0] / at[0.1]:.0f}. Where the range is below 1, "
    "as at input std 0.01, a smaller p divides by more, not less.",
    alt="Spread of the output by p: from 10, 1 and 0.1 it falls, from 0.01 it rises, to one point at p = 1.",
    notebook="background",
    profile=profile,
)

# %% [markdown]
# Scaling the input by $a$ scales the output of Eq. 14 by $a^{1-p}$. BatchNorm makes a layer insensitive to
# the scale of the weights before it; RobustNorm at $p = 0.2$ mostly does not, and whatever follows from that
# insensitivity should not be expected of it.
#
# ## One outlier
#
# Now a single number of the 102,400 is replaced by a large one. What happens to all the others?

# %% tags=["hide-input"]
sizes = np.logspace(1, 4, 25)
figure, axis = plt.subplots(figsize=(7, 4))
rest = {}
for name, (make, colour, line) in NORMS.items():
    if name.startswith("Eq. 11"):
        continue  # has the spread of Eq. 12
    curve = []
    for size in sizes:
        polluted = channel.copy()
        polluted[0, 0] = size
        curve.append(through(make(), polluted).ravel()[1:].std())
    rest[name] = np.array(curve) / through(make(), channel).std()
    axis.plot(sizes, rest[name], line, color=colour, label=name)
axis.set(xscale="log", yscale="log", xlabel="size of the outlier (standard deviations)")
axis.set_ylabel("spread of the others, relative")
axis.legend(fontsize="small")
thousand = np.abs(sizes - 1000).argmin()
pages.show(
    figure,
    caption="What one outlier of size 1000 leaves of the spread of the other 102,399 numbers: "
    f"{rest['BatchNorm'][thousand]:.0%} after BatchNorm, {rest['RobustNorm, p = 0.2'][thousand]:.0%} after "
    f"RobustNorm, {rest['Eq. 12, p = 1'][thousand]:.0%} after Eq. 12. Below a size of some 400 "
    "BatchNorm suffers least.",
    alt="Spread of the others by size of the outlier: Eq. 12 falls soon, RobustNorm slowly, BatchNorm late.",
    notebook="background",
    profile=profile,
)

# %% [markdown]
# A number of size $s$ adds $s^2 / M$ to the variance but $s$ itself to the range. So Eq. 12 suffers from any
# outlier, and BatchNorm only from those beyond $\sqrt M \approx 320$ standard deviations. RobustNorm suffers
# as early as Eq. 12 but, by its small power, little: it is the worse of the two up to some hundred standard
# deviations and the better beyond.
#
# ## The size of the batch
#
# With batch statistics the size of the inference batch matters. Here the pixels of an image share an offset,
# which makes up half of their variance. For each batch size: the denominator of each norm over 200 batches,
# relative to its mean at 128 images.

# %% tags=["hide-input"]
batch_sizes = [1, 2, 4, 8, 16, 32, 64, 128]
draws = 200


def denominators(n):
    """Standard deviation, range and range^0.2 of batches of n images of 8 x 8, (3, draws)."""
    offset = generator.standard_normal((draws, n, 1))
    flat = (offset + generator.standard_t(4, (draws, n, 64)) / np.sqrt(2)).reshape(draws, -1)
    return np.stack([flat.std(1), np.ptp(flat, axis=1), np.ptp(flat, axis=1) ** 0.2])


measured = {n: denominators(n) for n in batch_sizes}
relative = np.stack([measured[n] / measured[128].mean(1, keepdims=True) for n in batch_sizes])
figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), sharey=True)
titles = {"std (BatchNorm)": PALETTE[0], "range (Eq. 12)": PALETTE[4], "range^0.2 (RobustNorm)": PALETTE[2]}
for axis, values, (title, colour) in zip(axes, relative.transpose(1, 0, 2), titles.items(), strict=True):
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=1)
    axis.fill_between(batch_sizes, low, high, color=colour, alpha=0.25)
    axis.plot(batch_sizes, middle, "o-", color=colour, markersize=4)
    axis.axhline(1, color="0.5", linewidth=1)
    axis.set(xscale="log", title=title, xlabel="images in the batch")
    axis.set_xticks([1, 8, 128], ["1", "8", "128"])
axes[0].set_ylabel("denominator, relative")
bands = [f"{low:.2f} to {high:.2f}" for low, high in np.quantile(relative[0], [0.05, 0.95], axis=1).T]
pages.show(
    figure,
    caption="Denominators against the batch size: median, and the band of 90% of batches. For a single "
    f"image, relative to 128, std is {bands[0]}, the range {bands[1]}, range^0.2 {bands[2]}. "
    "In small batches RobustNorm's denominator varies least, but it still grows where std has settled.",
    alt="By batch size: std has a wide band and levels off, the range rises, its power rises slowly.",
    notebook="background",
    profile=profile,
)

# %% [markdown]
# The range of a larger sample is larger, so a norm that divides by it depends on the size of the batch by
# construction; the power of 0.2 reduces a factor of 4 to one of 1.3. A denominator that hardly varies hardly
# corrects anything either. How much RobustNorm gains or loses by batch statistics then rests with the mean,
# which it shares with BatchNorm. Whether networks bear that out is a question for the chapters on the paper's
# results.
