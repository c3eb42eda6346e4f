"""Figures: their lines, titles and labels, read back from Matplotlib."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from bert_jax.data.distribution import Distribution
from bert_jax.training import logging, plots


def write(run, lines):
    run.mkdir(exist_ok=True)
    (run / logging.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of(axes):
    """(x, y) of each line that is not a horizontal across the whole width."""
    return [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in axes.get_lines()]


def finetuning(runs=0, steps=range(10, 40, 10)):
    """Metrics of a fine-tuning run, as the trainer writes them."""
    lines = []
    for step in range(1, 31):
        lines.append({"step": step, "split": "train", "loss": 3.0 / step, "accuracy": 0.5, "learning_rate": 1e-5})
        if step in steps:
            run_scores = {f"{logging.RUN_PREFIX}{index}": 0.1 * index + step / 100 for index in range(runs)}
            best = {"best_run": runs - 1} if runs else {}
            lines.append({"step": step, "split": "dev", "f1": 0.5 + step / 100, "exact": 0.1, "constant": 0.3} | best | run_scores)
    return lines


def test_task_curves_are_the_loss_and_the_score(tmp_path):
    write(tmp_path / "run", finetuning())
    loss, scores = plots.task_curves(tmp_path / "run", "f1").axes
    assert (loss.get_title(), scores.get_title()) == ("training loss", "f1, development")
    assert (loss.get_xlabel(), scores.get_xlabel()) == ("step", "step")
    ((x, y),) = lines_of(loss)
    np.testing.assert_array_equal(x, np.arange(1, 31))
    np.testing.assert_allclose(y, 3.0 / np.arange(1, 31))
    ((x, y),) = lines_of(scores)
    np.testing.assert_array_equal(x, [10, 20, 30])
    np.testing.assert_allclose(y, [0.6, 0.7, 0.8])


def test_task_curves_show_each_run_of_several(tmp_path):
    write(tmp_path / "run", finetuning(runs=3))
    _, scores = plots.task_curves(tmp_path / "run", "f1").axes
    *runs, best = scores.get_lines()
    assert len(runs) == 3
    for index, line in enumerate(runs):
        np.testing.assert_array_equal(line.get_xdata(), [10, 20, 30])
        np.testing.assert_allclose(line.get_ydata(), 0.1 * index + np.array([0.1, 0.2, 0.3]))
        # Gray, behind the best one.
        assert to_rgba(line.get_color()) == to_rgba("0.7")
    np.testing.assert_allclose(best.get_ydata(), [0.6, 0.7, 0.8])
    assert to_rgba(best.get_color()) == to_rgba("C0")


def test_training_losses_are_averaged_over_a_fiftieth_of_the_run(tmp_path):
    values = np.random.default_rng(0).normal(size=200)
    lines = [{"step": 10 * number, "split": "train", "loss": value} for number, value in enumerate(values.tolist(), 1)]
    write(tmp_path / "run", lines)
    ((x, y),) = lines_of(plots.task_curves(tmp_path / "run", "accuracy").axes[0])
    np.testing.assert_array_equal(x, 10 * np.arange(4, 201))
    np.testing.assert_allclose(y, [values[at - 4 : at].mean() for at in range(4, 201)])


@pytest.mark.parametrize("kept", ["none", "train"])
def test_a_run_without_scores_or_without_steps_is_drawn(tmp_path, kept):
    """As when it was stopped early."""
    write(tmp_path / "run", [line for line in finetuning() if line["split"] == kept])
    loss, scores = plots.task_curves(tmp_path / "run", "f1").axes
    assert (len(loss.get_lines()), len(scores.get_lines())) == (kept == "train", 0)
    assert scores.get_title() == "f1, development"


def test_seed_scores_show_every_score_the_medians_and_the_constant(tmp_path):
    scores = [[0.5, 0.9, 0.7], [0.8], [0.6, 0.6, 0.6, 0.6]]
    figure = plots.seed_scores(["a", "b", "c"], scores, "accuracy", 0.4)
    (axes,) = figure.axes
    constant, *columns = axes.get_lines()
    np.testing.assert_array_equal(constant.get_ydata(), [0.4, 0.4])
    np.testing.assert_array_equal(constant.get_xdata(), [0, 1])
    (label,) = axes.texts
    assert (label.get_text(), label.xy[1]) == ("constant answer", 0.4)
    assert len(columns) == 3
    for index, (line, values) in enumerate(zip(columns, scores, strict=True)):
        np.testing.assert_array_equal(line.get_ydata(), values)
        across = line.get_xdata()
        # Points of a column are apart, and closer to their own column than to another.
        assert len({*across.tolist()}) == len(values)
        assert np.abs(across - index).max() < 0.3
        np.testing.assert_allclose(np.mean(across), index)
    medians = [segment for collection in axes.collections for segment in collection.get_segments()]
    np.testing.assert_allclose([segment[:, 1] for segment in medians], [[0.7, 0.7], [0.8, 0.8], [0.6, 0.6]])
    np.testing.assert_allclose([segment[:, 0].mean() for segment in medians], [0, 1, 2])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b", "c"]
    np.testing.assert_array_equal(axes.get_xticks(), [0, 1, 2])
    assert axes.get_ylabel() == "accuracy, development"
    assert axes.get_title() == "each seed, and the median"


def test_many_settings_make_a_wider_figure():
    narrow, wide = (plots.seed_scores([str(n) for n in range(count)], [[0.5]] * count, "f1", 0.1) for count in (1, 18))
    assert narrow.get_figwidth() == 4
    assert wide.get_figwidth() == pytest.approx(21.6)


def test_figures_are_written(tmp_path):
    write(tmp_path / "run", finetuning(runs=2))
    for name, figure in {
        plots.CURVES: plots.task_curves(tmp_path / "run", "f1"),
        plots.STABILITY: plots.seed_scores(["5e-05\nbatch 32\n3 epochs"], [[0.5, 0.7]], "f1", 0.4),
    }.items():
        figure.savefig(tmp_path / name, dpi=50, format="png")
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_pretraining_curves_are_the_three_measures(tmp_path):
    lines = []
    for step in (1, 2, 3, 4):
        values = {"mlm_loss": 4.0 / step, "mlm_accuracy": step / 10, "nsp_accuracy": 0.5 + step / 10}
        lines.append({"step": step, "split": "train"} | values)
        if step % 2 == 0:
            lines.append({"step": step, "split": "held_out", "unigram_loss": 3.5, "nsp_majority": 0.55} | values)
    write(tmp_path / "run", lines)
    loss, mlm_accuracy, nsp_accuracy = plots.curves(tmp_path / "run").axes
    for axes, name, floor in ((loss, "mlm_loss", 3.5), (mlm_accuracy, "mlm_accuracy", None), (nsp_accuracy, "nsp_accuracy", 0.55)):
        train, held_out, *rest = lines_of(axes)
        for (x, y), split in ((train, "train"), (held_out, "held_out")):
            expected = [line for line in lines if line["split"] == split]
            np.testing.assert_array_equal(x, [line["step"] for line in expected])
            np.testing.assert_allclose(y, [line[name] for line in expected])
        assert [line[1].tolist() for line in rest] == ([[floor, floor]] if floor else [])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "held out"]
    assert [text.get_text() for axes in (loss, nsp_accuracy) for text in axes.texts] == ["unigram model", "majority class"]


def test_runs_are_compared_by_their_means(tmp_path):
    losses = {"a": [[3.0, 2.0], [3.2, 2.4], [3.4, 2.2]], "b": [[3.0, 1.0], [3.0, 1.0], [3.0, 1.0]]}
    runs = {}
    for name, seeds in losses.items():
        for seed, values in enumerate(seeds):
            lines = [{"step": step, "split": "train", "mask_rate": 0.1 * step} for step in (1, 2)]
            lines += [
                {"step": step, "split": "held_out", "mlm_loss": value, "mlm_accuracy": 0.5}
                for step, value in zip((1, 2), values, strict=True)
            ]
            write(tmp_path / f"{name}-{seed}", lines)
            runs.setdefault(name, []).append(tmp_path / f"{name}-{seed}")
    figure = plots.curves(runs)
    rate, loss, _ = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    for x, y in lines_of(rate):
        np.testing.assert_allclose((x, y), [(1, 2), (0.1, 0.2)])
    np.testing.assert_allclose([y for _, y in lines_of(loss)], [[3.2, 2.2], [3.0, 1.0]])
    # Student's t of two degrees of freedom at 97.5 %, times the standard error of .2 / sqrt(3).
    wide, narrow = (band.get_paths()[0].vertices[:, 1] for band in loss.collections)
    assert wide.max() == pytest.approx(3.2 + 4.3027 * 0.2 / 3**0.5, abs=1e-4)
    assert (narrow.min(), narrow.max()) == (1.0, 3.0)


@pytest.mark.parametrize("logarithmic", [True, False])
def test_lengths_are_shown_as_shares(logarithmic):
    rng = np.random.default_rng(0)
    numbers = {"train": rng.geometric(0.02, 5000), "held_out": rng.geometric(0.1, 100)}
    distributions = {name: Distribution.of(values) for name, values in numbers.items()}
    (axes,) = plots.lengths({"tokens per document": distributions}, marks=(64, 10**6), logarithmic=logarithmic).axes
    assert axes.get_title() == "tokens per document"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"{name}, mean {values.mean():,.0f}" for name, values in numbers.items()
    ]
    for stairs, values in zip(axes.patches, numbers.values(), strict=True):
        edges = stairs.get_data().edges
        widths = np.diff(np.log2(edges)) if logarithmic else 1
        shares = stairs.get_data().values * widths
        assert shares.sum() == pytest.approx(1)
        expected = [((values >= low) & (values < high)).mean() for low, high in itertools.pairwise(edges)]
        np.testing.assert_allclose(shares, expected)
    # A mark beyond the longest is left out.
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [64]
    assert [text.get_text() for text in axes.texts] == ["64"]


@pytest.mark.parametrize("value", [1, 7])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_equal_lengths_are_one_bin(value, logarithmic):
    (axes,) = plots.lengths({"a": {"b": Distribution.of(np.full(9, value))}}, logarithmic=logarithmic).axes
    (stairs,) = axes.patches
    assert np.count_nonzero(stairs.get_data().values) == 1
    axes.figure.savefig(io.BytesIO())


TOKENS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "alpha", "bra", "##vo", "charlie"]


def test_masks_are_shown_on_the_text():
    before = {"input_ids": np.array([[1, 4, 5, 6, 7, 2, 0]]), "segment_ids": np.array([[1, 1, 1, 1, 1, 1, 0]])}
    after = {
        "input_ids": np.array([[1, 3, 5, 4, 3, 2, 0]]),
        "mlm_positions": np.array([[1, 2, 3]]),
        "mlm_weights": np.array([[1.0, 1.0, 1.0]]),
        "mlm_kinds": np.array([[0, 2, 1]]),
    }
    axes = plots.masks(TOKENS, before, after, columns=14).axes[0]
    lines = {}
    for text in axes.texts:
        lines.setdefault(text.get_position()[1], []).append((text.get_position()[0], text.get_text()))
    shown = ["".join(letter for _, letter in sorted(letters)) for _, letters in sorted(lines.items())]
    # A word is not broken, whatever the length of its replacement.
    assert shown == ["[CLS]alpha", "bravo → alpha", "charlie[SEP]"]
    kinds = {to_rgba(color): kind for kind, color in plots.COLORS.items() if color}
    marked = [
        (patch.get_y() + 0.42, kinds[patch.get_facecolor()], round(patch.get_width() - 0.2))
        for patch in axes.patches
        if patch.get_width()
    ]
    assert marked == [(0, "masked", 5), (1, "kept", 3), (1, "random", 10), (2, "hidden, not predicted", 7)]
