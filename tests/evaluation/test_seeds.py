"""Statistics over seeds: the numbers, grids and files, and that finished runs are not trained again."""

from __future__ import annotations

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.evaluation import seeds
from bert_jax.evaluation.seeds import Grid, bootstrap_interval, finetune_all, seed_statistics
from bert_jax.training.finetuning import CONSTANT
from bert_jax.training.job import Result
from bert_jax.training.logging import RUN_PREFIX
from tests.runs import config_of, interrupt_at, quickly_compiled, save_model, write_data
from tests.training.test_ensemble import devices

pytestmark = pytest.mark.usefixtures("unoptimized")


def resampled(scores, draws=40_000):
    """Percentiles of the means of samples of the same size, drawn with replacement: the definition."""
    rng = np.random.default_rng(12345)
    means = scores[rng.integers(0, len(scores), (draws, len(scores)))].mean(1)
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("count", [3, 8, 25])
@pytest.mark.parametrize("kind", ["normal", "skewed", "two"])
def test_the_interval_is_that_of_a_plain_bootstrap(kind, count):
    """Within what 9,999 and 40,000 draws may differ: the density at these percentiles is that of a normal one or more."""
    rng = np.random.default_rng(count)
    scores = {
        "normal": rng.normal(0.8, 0.02, count),
        "skewed": 0.9 - rng.exponential(0.05, count),
        "two": rng.integers(0, 2, count),
    }
    chosen = scores[kind].astype(float)
    chosen[0] += 0.01
    result, expected = bootstrap_interval(chosen), resampled(chosen)
    assert result[0] < chosen.mean() < result[1]
    # Of a few scores the means are few numbers, between which a percentile may jump.
    gaps = np.ptp(chosen) / count if kind == "two" or count == 3 else 0.0
    np.testing.assert_allclose(result, expected, rtol=0, atol=0.2 * chosen.std() / np.sqrt(count) + gaps)
    assert bootstrap_interval(chosen) == result


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_an_interval_lies_among_the_scores(scores):
    low, high = bootstrap_interval(np.array(scores))
    slack = 1e-12
    assert min(scores) - slack <= low <= high <= max(scores) + slack


def test_equal_scores_and_single_ones_are_their_own_interval():
    assert bootstrap_interval(np.array([0.7])) == (0.7, 0.7)
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)


# Simulated runs.


def write_scores(config, scores, *, constant=0.5, main="accuracy"):
    """Write the metrics of a finished run; its first evaluation has other scores."""
    run = epath.Path(config.run)
    run.mkdir(parents=True, exist_ok=True)
    lines = [{"step": 1, "split": "train", "loss": 1.0}]
    for step, values in ((2, [0.0] * len(scores)), (4, scores)):
        runs = {f"{RUN_PREFIX}{index}": score for index, score in enumerate(values)} if len(values) > 1 else {}
        lines.append({"step": step, "split": "dev", main: max(values), CONSTANT: constant, **runs})
    lines.append({"step": 5, "split": "train", "loss": 0.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_statistics(tmp_path):
    """Computed by hand: three seeds of each of two rates; the last scores count."""
    config = config_of("classify", "init", "data", tmp_path / "run", learning_rates=(1e-3, 2e-3), seeds=3, batch_size=8, epochs=3.0)
    write_scores(config, [0.9, 0.5, 0.7, 0.505, 0.505, 0.506])
    first, second = seed_statistics(config)
    assert (first.batch_size, first.epochs, first.learning_rate, first.run) == (8, 3.0, 1e-3, config.run)
    assert (first.scores, first.best, first.median, first.constant) == ([0.9, 0.5, 0.7], 0.9, 0.7, 0.5)
    assert first.mean == pytest.approx(0.7)
    assert first.deviation == pytest.approx(0.2)
    assert first.interval == pytest.approx((0.5, 0.9), abs=0.04)
    # A hundredth of the way from 0.5 to 1 is 0.505.
    assert (first.collapsed, second.collapsed) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (second.learning_rate, second.median, second.best) == (2e-3, 0.505, 0.506)


def test_one_run_has_no_deviation(tmp_path):
    config = config_of("classify", "init", "data", tmp_path / "run")
    write_scores(config, [0.8])
    (only,) = seed_statistics(config)
    assert (only.scores, only.mean, only.median, only.best, only.deviation, only.interval) == (
        [0.8],
        0.8,
        0.8,
        0.8,
        0.0,
        (0.8, 0.8),
    )


@pytest.mark.parametrize(("task", "main", "constant"), [("squad", "f1", 0.0), ("squad2", "best_f1", 50.0)])
def test_scores_in_percent_collapse_in_percent(task, main, constant, tmp_path):
    """SQuAD's scores go to 100: a hundredth of the way from nothing to a perfect score is 1."""
    config = config_of(task, "init", "data", tmp_path / "run", seeds=4)
    scores = [constant, constant + 0.4 * (1 - constant / 100), constant + 1.2, 88.0]
    write_scores(config, scores, constant=constant, main=main)
    (only,) = seed_statistics(config)
    assert only.scores == scores
    assert only.collapsed == 0.5


@pytest.fixture
def trained(monkeypatch):
    """Configs of simulated fine-tuning; scores rise with the learning rate and fall with the batch size."""
    configs = []

    def finetune(config):
        configs.append(config)
        scores = [
            rate * 100 - config.batch_size / 1000 + seed / 1e6 for rate in config.learning_rates for seed in range(config.seeds)
        ]
        write_scores(config, scores, constant=0.1)
        return Result(4, {"accuracy": max(scores)}, None)

    monkeypatch.setattr(seeds, "finetune", finetune)
    return configs


def test_a_single_run_is_a_sentence_and_no_file(trained, tmp_path):
    config = config_of("classify", "init", "data", tmp_path / "run")
    report = finetune_all(config)
    assert trained == [config]
    assert report.text == f"{config.run}: accuracy 0.284; a constant answer scores 0.1"
    assert (len(report.statistics), report.signal) == (1, None)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.jsonl"}


def test_several_seeds_are_a_table_a_file_and_a_figure(trained, tmp_path):
    config = config_of("classify", "init", "data", tmp_path / "run", learning_rates=(1e-3, 5e-3), seeds=3)
    report = finetune_all(config)
    assert trained == [config]
    assert [entry.learning_rate for entry in report.statistics] == [1e-3, 5e-3]
    assert "classify: accuracy over 3 seeds; a constant answer scores 0.1" in report.text
    rows = [line for line in report.text.splitlines() if "0.001" in line or "0.005" in line]
    assert "0.4840 ± 0.0000" in rows[1]
    assert report.text.splitlines()[-1] == f"Best median: batch 16, 4 epochs, learning rate 0.005, in {config.run}."
    stored = json.loads((tmp_path / "run" / "stability.json").read_text())
    assert (stored["task"], stored["score"]) == ("classify", "accuracy")
    assert stored["runs"] == [{**entry._asdict(), "interval": list(entry.interval)} for entry in report.statistics]
    assert (tmp_path / "run" / "stability.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.jsonl", "stability.json", "stability.png"}


def test_two_rates_of_one_seed_are_several_runs(trained, tmp_path):
    finetune_all(config_of("classify", "init", "data", tmp_path / "run", learning_rates=(1e-3, 5e-3)))
    assert len(json.loads((tmp_path / "run" / "stability.json").read_text())["runs"]) == 2


def test_a_grid_has_a_directory_for_each_combination(trained, tmp_path):
    config = config_of("classify", "init", "data", tmp_path / "run", seeds=2)
    report = finetune_all(config, Grid(batch_sizes=(8, 16), epoch_counts=(2.0, 0.5)))
    names = ["batch-8-epochs-2", "batch-8-epochs-0.5", "batch-16-epochs-2", "batch-16-epochs-0.5"]
    assert [epath.Path(config.run).name for config in trained] == names
    for combination, (size, epochs) in zip(trained, ((8, 2.0), (8, 0.5), (16, 2.0), (16, 0.5)), strict=True):
        assert combination == dataclasses.replace(config, run=combination.run, batch_size=size, epochs=epochs)
        assert epath.Path(combination.run).parent == epath.Path(config.run)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*names, "stability.json", "stability.png"}
    assert [entry.run for entry in report.statistics] == [config.run for config in trained]
    assert "Best median: batch 8, 2 epochs, learning rate 0.003" in report.text


def test_a_grid_of_one_combination_is_a_run(trained, tmp_path):
    finetune_all(config_of("classify", "init", "data", tmp_path / "run"), Grid(batch_sizes=(8,)))
    assert [(entry.run, entry.batch_size) for entry in trained] == [(str(tmp_path / "run"), 8)]


def test_the_grid_of_the_paper(trained, tmp_path):
    """Appendix A.3: batches of 16 and 32, three rates, two to four epochs; explicit options take precedence."""
    config = config_of("classify", "init", "data", tmp_path / "run", learning_rates=(5e-5,), seeds=2)
    report = finetune_all(config, Grid(paper_grid=True))
    assert [(entry.batch_size, entry.epochs) for entry in trained] == [
        (size, epochs) for size in (16, 32) for epochs in (2.0, 3.0, 4.0)
    ]
    assert {entry.learning_rates for entry in trained} == {(5e-5, 3e-5, 2e-5)}
    assert len(report.statistics) == 18
    for rates in ((1e-4, 2e-4), (7e-5,)):
        trained.clear()
        finetune_all(dataclasses.replace(config, learning_rates=rates), Grid(paper_grid=True, epoch_counts=(1.0,)))
        assert [(entry.batch_size, entry.epochs, entry.learning_rates) for entry in trained] == [(16, 1.0, rates), (32, 1.0, rates)]


def test_a_signal_ends_a_grid(trained, tmp_path, monkeypatch):
    """Without a report; the same command resumes."""
    config, usual = config_of("classify", "init", "data", tmp_path / "run"), seeds.finetune

    def stopped(config):
        result = usual(config)
        return result._replace(signal=signal.SIGTERM) if config.batch_size == 16 else result

    grid = Grid(batch_sizes=(8, 16, 32))
    with monkeypatch.context() as patch:
        patch.setattr(seeds, "finetune", stopped)
        report = finetune_all(config, grid)
    assert (report.signal, report.text, len(report.statistics), len(trained)) == (signal.SIGTERM, "", 1, 2)
    assert not (tmp_path / "run" / "stability.json").exists()
    assert len(finetune_all(config, grid).statistics) == 3


def test_only_the_first_process_writes(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    finetune_all(config_of("classify", "init", "data", tmp_path / "run"), Grid(batch_sizes=(8, 16)))
    assert not [path for path in (tmp_path / "run").iterdir() if "stability" in path.name]


def test_an_invalid_grid_is_refused_before_anything_is_trained(trained, tmp_path):
    for grid in (Grid(batch_sizes=(8, 0)), Grid(epoch_counts=(1.0, -2.0))):
        with pytest.raises(UserError, match=r"(batch_size|epochs) is (0|-2)"):
            finetune_all(config_of("classify", "init", "data", tmp_path / "run"), grid)
    assert trained == []


# A trained run.


def test_finished_runs_are_not_trained_again(tokenizer, tmp_path, monkeypatch):
    """Two seeds in each of two directories; the second call reports the same."""
    init = save_model(tmp_path / "model", tokenizer, num_hidden_layers=1)
    data = write_data(tmp_path / "data", "classify", train=32)
    devices(monkeypatch, 1)
    config = config_of("classify", init, data, tmp_path / "run", seeds=2, runs_per_device=2, batch_size=16, eval_every=1.0)
    grid = Grid(epoch_counts=(1.0, 2.0))
    with quickly_compiled():
        first = finetune_all(config, grid)
        stored = (tmp_path / "run" / "stability.json").read_text()
        (tmp_path / "run" / "stability.json").unlink()
        with monkeypatch.context() as patch:
            for step in range(1, 5):
                interrupt_at(patch, step, lambda: pytest.fail("a step was taken"))
            assert finetune_all(config, grid) == first
    assert (tmp_path / "run" / "stability.json").read_text() == stored
    assert [len(entry.scores) for entry in first.statistics] == [2, 2]
    for entry, name in zip(first.statistics, ("batch-16-epochs-1", "batch-16-epochs-2"), strict=True):
        lines = [json.loads(line) for line in (tmp_path / "run" / name / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if line["split"] == "dev"][-1]
        assert entry.scores == [last["run_0"], last["run_1"]]
        assert entry.constant == last[CONSTANT]
