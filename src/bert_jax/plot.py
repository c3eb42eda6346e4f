"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from bert_jax.log import MEMBER, read_metrics

CURVES, STABILITY = "curves.png", "stability.png"


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


def task_curves(run: epath.PathLike, score: str) -> Figure:
    """Training loss of a fine-tuning run over steps, and a development score: of each run, where several are trained at a time."""
    lines = read_metrics(run)
    train, dev = ([line for line in lines if line["split"] == split] for split in ("train", "dev"))
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    loss, scores = figure.subplots(1, 2)
    _draw(loss, train, [], "loss", "training loss")
    for name in [name for name in dev[0] if name.startswith(MEMBER)] if dev else []:
        scores.plot([line["step"] for line in dev], [line[name] for line in dev], color="0.7", lw=1)
    _draw(scores, [], dev, score, f"{score}, development")
    return figure


def spreads(labels: Sequence[str], scores: Sequence[Sequence[float]], name: str, floor: float) -> Figure:
    """Scores of runs that differ in their seed, a column for each setting, with their medians and the score of a constant."""
    figure = Figure(figsize=(max(4.0, 1.2 * len(labels)), 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(floor, color="C3", ls="--", lw=1)
    axes.annotate(
        "constant answer", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="C3", fontsize=8
    )
    for place, values in enumerate(scores):
        # Side by side, so that equal scores are seen.
        across = place + (np.arange(len(values)) - (len(values) - 1) / 2) * 0.5 / max(len(values), 4)
        axes.plot(across, values, "o", ms=4, color="C0", alpha=0.6)
        axes.hlines(np.median(values), place - 0.3, place + 0.3, color="C0", lw=2)
    axes.set(xticks=range(len(labels)), ylabel=f"{name}, development", title="each seed, and the median")
    axes.set_xticklabels(labels, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
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
