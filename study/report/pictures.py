"""Figures of images and of gradients: what an attack does to pixels, and whose loss moves them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from study.report.figures import nothing


def images(
    rows: Mapping[str, NDArray[np.floating]], titles: Sequence[str] = (), *, signed: Sequence[str] = ()
) -> Figure:
    """Images in rows, each row by its name.

    Args:
        rows: by name n images each, (n, H, W) or (n, 3, H, W), in [0, 1].
        titles: over the columns.
        signed: names of rows that are differences around 0, drawn in two colours on a scale of their own.
    """
    across = max(len(row) for row in rows.values())
    figure, axes = plt.subplots(len(rows), across, figsize=(0.9 * across, 1.05 * len(rows)), squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        limit = max(float(np.abs(row).max()), 1e-12)
        look = (
            {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
            if name in signed
            else {"cmap": "gray_r", "vmin": 0, "vmax": 1}
        )
        for axis, image in zip(line, row, strict=False):
            axis.imshow(image if image.ndim == 2 else image.transpose(1, 2, 0), **look)
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize="small")
    return figure


def gradient_sources(
    own: NDArray[np.floating], others: NDArray[np.floating], fooled: NDArray[np.bool_]
) -> Figure:
    """An image's gradient from its own loss, and from its neighbours', a dot each.

    Above the diagonal the neighbours decide.
    """
    import seaborn as sns

    if not len(own):
        return nothing()
    told = np.where(fooled, "fooled", "still right")
    tidy = pd.DataFrame({"own": own, "others": others, "image": told})
    look = {"hue": "image", "hue_order": ["still right", "fooled"], "height": 3.4, "aspect": 1.5}
    grid = sns.relplot(tidy, x="own", y="others", **look)
    grid.ax.axline((1, 1), slope=1, color="0.5", linewidth=1, zorder=0)
    positive = np.concatenate([own, others])[np.concatenate([own, others]) > 0]
    limits = (positive.min() / 2, positive.max() * 2)
    grid.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    grid.set_axis_labels("length of the gradient from the image's own loss", "from its neighbours' losses")
    figure: Figure = grid.figure
    return figure
