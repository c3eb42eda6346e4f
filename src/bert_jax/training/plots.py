"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bert_jax.training.logging import MEMBER, read_metrics

CURVES, STABILITY = "curves.png", "stability.png"
COLORS = {"masked": "#f4a9a0", "random": "#f7d488", "kept": "#a9cdf0", "hidden, not predicted": "#d9d9d9", "": None}
"""What becomes of a piece."""

HostArrays = Mapping[str, Any]


def curves(run: epath.PathLike | Mapping[str, Sequence[epath.PathLike]]) -> Figure:
    """Losses and accuracies of a run over steps, held-out and training, with what frequencies alone would reach.

    Training values are drawn thin and averaged over a fiftieth of the run.

    Args:
      run: a run's directory; or of several kinds of runs the directories of each one's seeds, as :attr:`bert_jax.Sweep.runs` has
        them: then the mean of each kind with a 95 % interval of it, of held-out values at the paper's 15 %, and the share of tokens
        that was chosen in training.
    """
    if isinstance(run, Mapping):
        return _compared(run)
    lines = read_metrics(run)
    train, held_out = ([line for line in lines if line["split"] == split] for split in ("train", "held_out"))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    loss, words, pairs = figure.subplots(1, 3)
    _draw(loss, train, held_out, "mlm_loss", "masked-word loss (nats)", "unigram_loss", "unigram model")
    _draw(words, train, held_out, "mlm_accuracy", "masked-word accuracy")
    _draw(pairs, train, held_out, "nsp_accuracy", "next-sentence accuracy", "nsp_majority", "majority class")
    loss.legend(frameon=False)
    return figure


def _compared(runs: Mapping[str, Sequence[epath.PathLike]]) -> Figure:
    # Not above: it takes half a second.
    from scipy import stats

    figure = Figure(figsize=(10, 4.0), layout="constrained")
    for axes, split, score, title in zip(
        figure.subplots(1, 3),
        ("train", "held_out", "held_out"),
        ("mask_rate", "mlm_loss", "mlm_accuracy"),
        ("share of tokens chosen", "held-out masked-word loss (nats)", "held-out masked-word accuracy"),
        strict=True,
    ):
        for number, (name, paths) in enumerate(runs.items()):
            found = [{line["step"]: line[score] for line in read_metrics(path) if line["split"] == split} for path in paths]
            shared = sorted(set.intersection(*map(set, found)))
            values = np.array([[lines[step] for step in shared] for lines in found])
            mean = values.mean(0)
            axes.plot(shared, mean, color=f"C{number}", lw=1.5, label=name)
            if len(paths) > 1 and split == "held_out":
                # Student's t, since seeds are few.
                half = stats.t.ppf(0.975, len(paths) - 1) * values.std(0, ddof=1) / np.sqrt(len(paths))
                axes.fill_between(shared, mean - half, mean + half, color=f"C{number}", alpha=0.2, lw=0)
        axes.set(xlabel="step", title=title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def masks(pieces: Sequence[str], before: HostArrays, after: HostArrays, *, rows: int = 3, columns: int = 110) -> Figure:
    """Text as a policy hides it, coloured by what became of each piece.

    Args:
      pieces: the tokenizer's.
      before: a batch, with ``ids`` and ``segments`` [B, S].
      after: what :func:`bert_jax.mask_tokens` made of it.
      rows: of the batch that are drawn.
      columns: letters in a line.
    """
    # (line, column, letters, kind) of every piece.
    written: list[tuple[int, int, str, str]] = []
    line = 0
    for row in range(min(rows, len(before["ids"]))):
        column = 0
        for word in _words(pieces, before, after, row):
            if column and column + 1 + sum(len(letters) for letters, _ in word) > columns:
                line, column = line + 1, 0
            column += bool(column)
            for letters, kind in word:
                written.append((line, column, letters, kind))
                column += len(letters)
        line += 2
    figure = Figure(figsize=(0.075 * columns + 0.3, 0.2 * line + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, columns), ylim=(line + 1.2, -1))
    axes.axis("off")
    for at, column, letters, kind in written:
        color = COLORS[kind]
        axes.add_patch(Rectangle((column - 0.1, at - 0.42), len(letters) + 0.2, 0.84, color=color, lw=0)) if color else None
        for number, letter in enumerate(letters):
            axes.text(column + number + 0.5, at, letter, ha="center", va="center", family="monospace", fontsize=8)
    legend = [Rectangle((0, 0), 1, 1, color=color, label=kind) for kind, color in COLORS.items() if color]
    axes.legend(handles=legend, loc="lower left", ncols=len(legend), frameon=False, fontsize=8)
    return figure


def _words(pieces: Sequence[str], before: HostArrays, after: HostArrays, row: int) -> Iterator[list[tuple[str, str]]]:
    """What is written of each word of a row: letters and kind of each of its pieces."""
    kinds, word = _kinds(before, after, row), list[tuple[str, str]]()
    for place in np.flatnonzero(np.asarray(before["segments"][row])).tolist():
        piece, becomes = (pieces[int(batch["ids"][row, place])] for batch in (before, after))
        if word and not piece.startswith("##"):
            yield word
            word = []
        letters = piece.removeprefix("##")
        if kinds[place] == "random":
            letters += f" → {becomes.removeprefix('##')}"
        word.append((letters, kinds[place]))
    yield word


def _kinds(before: HostArrays, after: HostArrays, row: int) -> list[str]:
    """What became of each piece of a row."""
    changed = np.asarray(before["ids"][row]) != np.asarray(after["ids"][row])
    kinds = ["hidden, not predicted" if one else "" for one in changed.tolist()]
    found = (np.asarray(after[f"mlm_{name}"][row]).tolist() for name in ("positions", "weights", "kinds"))
    for place, weight, kind in zip(*found, strict=True):
        if weight > 0:
            kinds[place] = ("masked", "random", "kept")[kind]
    return kinds


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
