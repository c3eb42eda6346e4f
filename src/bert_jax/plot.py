"""Pictures of runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from bert_jax.log import read_metrics

CURVES = "curves.png"


def curves(run: epath.PathLike) -> Figure:
    """Losses and accuracies of a run over steps, held-out and training, with what frequencies alone would reach.

    Training values are drawn thin and averaged over a fiftieth of the run.
    """
    lines = read_metrics(run)
    train, held_out = ([line for line in lines if line["split"] == split] for split in ("train", "held_out"))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    loss, words, pairs = figure.subplots(1, 3)
    _draw(loss, train, held_out, "mlm_loss", "masked-word loss (nats)", "unigram_loss", "unigram model")
    _draw(words, train, held_out, "mlm_accuracy", "masked-word accuracy")
    _draw(pairs, train, held_out, "nsp_accuracy", "next-sentence accuracy", "nsp_majority", "majority class")
    loss.legend(frameon=False)
    return figure


def _draw(
    axes: Any,
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    name: str,
    title: str,
    floor: str = "",
    label: str = "",
) -> None:
    if train:
        values = np.array([line[name] for line in train])
        width = max(1, len(values) // 50)
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        axes.plot([line["step"] for line in train][width - 1 :], smooth, color="0.6", lw=1, label="training")
    if held_out:
        axes.plot(
            [line["step"] for line in held_out],
            [line[name] for line in held_out],
            "o-",
            ms=3,
            color="C0",
            label="held out",
        )
        if floor:
            axes.axhline(held_out[-1][floor], color="C3", ls="--", lw=1)
            axes.annotate(
                label,
                (1, held_out[-1][floor]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color="C3",
                fontsize=8,
            )
    axes.set(xlabel="step", title=title)
    axes.spines[["top", "right"]].set_visible(False)
