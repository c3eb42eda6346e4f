"""Figures of runs, of masks, of lengths, and of scores over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bert_jax.data.distribution import Distribution
from bert_jax.training.logging import RUN_PREFIX, read_metrics

CURVES, STABILITY = "curves.png", "stability.png"
"""Names of the figures in a run directory."""
COLORS = {"masked": "#f4a9a0", "random": "#f7d488", "kept": "#a9cdf0", "hidden, not predicted": "#d9d9d9", "": None}
"""Kind of a token in ``masks`` -> its color; "" is a token that was not selected."""

_MOST_TICKS = 7

Arrays = Mapping[str, Any]
"""A batch on the host or on the device."""


def curves(run: epath.PathLike | Mapping[str, Sequence[epath.PathLike]]) -> Figure:
    """Losses and accuracies over steps: of a pretraining run, or of several configs over seeds.

    For a single run: held-out values, training values as thin lines, averaged over 2 % of the run, and as dashed lines the loss of
    a unigram model and the accuracy of the majority class. For several configs: means over seeds of the held-out MLM loss and MLM
    accuracy at the paper's mask rate of 15 %, with 95 % confidence intervals, and the mask rate in training.

    Args:
      run: a run directory; or for each config, by name, the run directories of its seeds, as in ``Sweep.runs``.
    """
    if isinstance(run, Mapping):
        return _compare(run)
    lines = read_metrics(run)
    train, held_out = ([line for line in lines if line["split"] == split] for split in ("train", "held_out"))
    has_pairs = any("nsp_accuracy" in line for line in held_out)
    figure = Figure(figsize=(10 if has_pairs else 7, 3.6), layout="constrained")
    loss, mlm_accuracy, *nsp_accuracy = figure.subplots(1, 3 if has_pairs else 2)
    _draw(loss, train, held_out, "mlm_loss", "MLM loss (nats)", "unigram_loss", "unigram model")
    _draw(mlm_accuracy, train, held_out, "mlm_accuracy", "MLM accuracy")
    for axes in nsp_accuracy:
        _draw(axes, train, held_out, "nsp_accuracy", "NSP accuracy", "nsp_majority", "majority class")
    loss.legend(frameon=False)
    return figure


def _compare(runs: Mapping[str, Sequence[epath.PathLike]]) -> Figure:
    # Imported late: it takes half a second.
    from scipy import stats

    figure = Figure(figsize=(10, 4.0), layout="constrained")
    for axes, split, score, title in zip(
        figure.subplots(1, 3),
        ("train", "held_out", "held_out"),
        ("mask_rate", "mlm_loss", "mlm_accuracy"),
        ("mask rate in training", "held-out MLM loss (nats)", "held-out MLM accuracy"),
        strict=True,
    ):
        for index, (name, paths) in enumerate(runs.items()):
            by_step = [{line["step"]: line[score] for line in read_metrics(path) if line["split"] == split} for path in paths]
            steps = sorted(set.intersection(*map(set, by_step)))
            values = np.array([[seed_values[step] for step in steps] for seed_values in by_step])
            mean = values.mean(0)
            axes.plot(steps, mean, color=f"C{index}", lw=1.5, label=name)
            if len(paths) > 1 and split == "held_out":
                # Student's t distribution, because there are few seeds.
                half = stats.t.ppf(0.975, len(paths) - 1) * values.std(0, ddof=1) / np.sqrt(len(paths))
                axes.fill_between(steps, mean - half, mean + half, color=f"C{index}", alpha=0.2, lw=0)
        axes.set(xlabel="step", title=title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def masks(tokens: Sequence[str], before: Arrays, after: Arrays, *, rows: int = 3, columns: int = 110) -> Figure:
    """The text of a masked batch, with each token colored by what replaced it.

    Args:
      tokens: the tokenizer's tokens, by id.
      before: the batch, with ``input_ids`` and ``segment_ids`` [B, S].
      after: the result of [`mask_tokens`][bert_jax.mask_tokens] for it.
      rows: number of rows that are drawn.
      columns: characters in a line.
    """
    cells: list[_Cell] = []
    line = 0
    for row in range(min(rows, len(before["input_ids"]))):
        column = 0
        for word in _words(tokens, before, after, row):
            if column and column + 1 + sum(len(characters) for characters, _ in word) > columns:
                line, column = line + 1, 0
            column += bool(column)
            for characters, kind in word:
                cells.append(_Cell(line, column, characters, kind))
                column += len(characters)
        line += 2
    figure = Figure(figsize=(0.075 * columns + 0.3, 0.2 * line + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, columns), ylim=(line + 1.2, -1))
    axes.axis("off")
    for cell in cells:
        if color := COLORS[cell.kind]:
            corner, width = (cell.column - 0.1, cell.line - 0.42), len(cell.characters) + 0.2
            axes.add_patch(Rectangle(corner, width, 0.84, color=color, lw=0))
        for offset, character in enumerate(cell.characters):
            x = cell.column + offset + 0.5
            axes.text(x, cell.line, character, ha="center", va="center", family="monospace", fontsize=8)
    legend = [Rectangle((0, 0), 1, 1, color=color, label=kind) for kind, color in COLORS.items() if color]
    axes.legend(handles=legend, loc="lower left", ncols=len(legend), frameon=False, fontsize=8)
    return figure


class _Cell(NamedTuple):
    """A token in the figure."""

    line: int
    column: int
    characters: str
    kind: str


def _words(tokens: Sequence[str], before: Arrays, after: Arrays, row: int) -> Iterator[list[tuple[str, str]]]:
    """The words of a row: characters and kind of each of their tokens."""
    kinds, word = _kinds(before, after, row), list[tuple[str, str]]()
    for position in np.flatnonzero(np.asarray(before["segment_ids"][row])).tolist():
        token, replacement = (tokens[int(batch["input_ids"][row, position])] for batch in (before, after))
        if word and not token.startswith("##"):
            yield word
            word = []
        characters = token.removeprefix("##")
        if kinds[position] == "random":
            characters += f" → {replacement.removeprefix('##')}"
        word.append((characters, kinds[position]))
    yield word


def _kinds(before: Arrays, after: Arrays, row: int) -> list[str]:
    """The kind of each token of a row, a key of ``COLORS``."""
    changed = np.asarray(before["input_ids"][row]) != np.asarray(after["input_ids"][row])
    kinds = ["hidden, not predicted" if is_changed else "" for is_changed in changed.tolist()]
    predictions = (np.asarray(after[f"mlm_{name}"][row]).tolist() for name in ("positions", "weights", "kinds"))
    for position, weight, kind in zip(*predictions, strict=True):
        if weight > 0:
            kinds[position] = ("masked", "random", "kept")[kind]
    return kinds


def lengths(panels: Mapping[str, Mapping[str, Distribution]], *, marks: Sequence[int] = (), logarithmic: bool = True) -> Figure:
    """Histograms of lengths.

    Args:
      panels: for each title what is drawn below it, by name; the first one as an area, others as lines.
      marks: lengths that get a vertical line, such as those of rows.
      logarithmic: whether the axis of lengths is.
    """
    figure = Figure(figsize=(0.5 + 4.5 * len(panels), 3.6), layout="constrained")
    for axes, (title, distributions) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        values = np.maximum(np.concatenate([distribution.values for distribution in distributions.values()]), 1)
        edges = (_logarithmic_edges if logarithmic else _linear_edges)(values)
        # Bins at the lower end of a logarithmic axis have different widths, because lengths are whole numbers.
        widths = np.diff(np.log2(edges)) if logarithmic else 1
        for index, (name, distribution) in enumerate(distributions.items()):
            inside, _ = np.histogram(np.maximum(distribution.values, 1), edges, weights=distribution.counts)
            density = inside / max(distribution.total, 1) / widths
            label = f"{name}, mean {distribution.mean():,.0f}"
            axes.stairs(density, edges, fill=not index, color=f"C{index}", alpha=1.0 if index else 0.45, lw=1.5, label=label)
        for mark in (mark for mark in marks if edges[0] <= mark <= edges[-1]):
            axes.axvline(mark, color="0.5", ls="--", lw=0.8)
            place = {"xy": (mark, 1), "xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
            axes.annotate(f"{mark:,}", **place, color="0.4", fontsize=7)
        if logarithmic:
            powers = np.arange(np.log2(edges[0]), np.log2(edges[-1]))
            axes.set_xscale("log", base=2)
            axes.set_xticks(2 ** powers[:: -(-len(powers) // _MOST_TICKS)])
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(title, pad=14)
        axes.set(xlabel="tokens", ylabel="share per doubling" if logarithmic else "share")
        axes.legend(edgecolor="none", framealpha=0.9, loc="upper right" if logarithmic else "upper left", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _logarithmic_edges(values: np.ndarray) -> np.ndarray:
    """Four bins for each doubling, as far as there are so many whole numbers, from a power of two on."""
    edges: np.ndarray = np.ceil(2 ** np.arange(np.floor(np.log2(values.min())), np.log2(values.max() + 1) + 0.25, 0.25))
    return np.unique(edges)


def _linear_edges(values: np.ndarray) -> np.ndarray:
    """At most forty bins of equal width, the last of which ends with the longest."""
    end, width = int(values.max()) + 1, -(-int(values.max() + 1 - values.min()) // 40)
    return np.arange(end, values.min() - width, -width)[::-1].astype(float)


def task_curves(run: epath.PathLike, score: str) -> Figure:
    """Training loss and a development score of a fine-tuning run over steps; for an ensemble also the score of each of its runs.

    Args:
      run: the run directory.
      score: name of the score.
    """
    lines = read_metrics(run)
    train, dev = ([line for line in lines if line["split"] == split] for split in ("train", "dev"))
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    loss, scores = figure.subplots(1, 2)
    _draw(loss, train, [], "loss", "training loss")
    for name in [name for name in dev[0] if name.startswith(RUN_PREFIX)] if dev else []:
        scores.plot([line["step"] for line in dev], [line[name] for line in dev], color="0.7", lw=1)
    _draw(scores, [], dev, score, f"{score}, development")
    return figure


def seed_scores(labels: Sequence[str], scores: Sequence[Sequence[float]], name: str, constant: float) -> Figure:
    """Scores of runs that differ in their seed, with medians: one column for each setting.

    Args:
      labels: label of each setting.
      scores: scores of each setting's runs.
      name: name of the score.
      constant: score of a constant answer, a dashed line.
    """
    figure = Figure(figsize=(max(4.0, 1.2 * len(labels)), 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(constant, color="C3", ls="--", lw=1)
    _annotate_right(axes, "constant answer", constant)
    for index, values in enumerate(scores):
        # Dots are side by side, so that equal scores do not cover each other.
        x = index + (np.arange(len(values)) - (len(values) - 1) / 2) * 0.5 / max(len(values), 4)
        axes.plot(x, values, "o", ms=4, color="C0", alpha=0.6)
        axes.hlines(np.median(values), index - 0.3, index + 0.3, color="C0", lw=2)
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
    baseline: str = "",
    label: str = "",
) -> None:
    """Draw a metric of training and held-out lines, and as a dashed line the metric ``baseline`` of the last held-out line."""
    if train:
        values = np.array([line[name] for line in train])
        width = max(1, len(values) // 50)
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        axes.plot([line["step"] for line in train][width - 1 :], smooth, color="0.6", lw=1, label="training")
    if held_out:
        steps = [line["step"] for line in held_out]
        axes.plot(steps, [line[name] for line in held_out], "o-", ms=3, color="C0", label="held out")
        if baseline:
            axes.axhline(held_out[-1][baseline], color="C3", ls="--", lw=1)
            _annotate_right(axes, label, held_out[-1][baseline])
    axes.set(xlabel="step", title=title)
    axes.spines[["top", "right"]].set_visible(False)


def _annotate_right(axes: Any, label: str, y: float) -> None:
    axes.annotate(label, (1, y), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="C3", fontsize=8)
