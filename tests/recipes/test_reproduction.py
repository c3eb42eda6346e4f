"""Tables: what is run, resumed, compared and reported; with made-up text and tasks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import bert_jax
from bert_jax import cli
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.phases import Phase
from bert_jax.errors import UserError
from bert_jax.recipes import Column, Inputs, Row, Table, report, sampling_band
from bert_jax.recipes.multibootstrap import multibootstrap
from bert_jax.recipes.reproduction import Cell, Reproduction, load_table
from bert_jax.training.logging import read_metrics
from tests.runs import config_of, interrupt_at, write_data

pytestmark = pytest.mark.usefixtures("unoptimized")

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments" / "tables"


@pytest.fixture
def small(run_config, tmp_path):
    """Two rows, one of which differs in fine-tuning alone, with two pretraining seeds."""
    train = dataclasses.replace(run_config.train, steps=2, eval_every=2, save_every=2)
    pretraining = dataclasses.replace(run_config, train=train, optim=OptimConfig(peak_lr=1e-3, warmup_steps=1))
    data = write_data(tmp_path / "task", "classify", train=32, dev=20)
    plain = config_of("classify", "", data, "", epochs=1.0, eval_every=1.0)
    frozen = dataclasses.replace(plain, freeze_encoder=True)
    rows = {"plain": Row(pretraining, finetuning={"task": plain}), "frozen": Row(pretraining, finetuning={"task": frozen})}
    columns = {"task": Column("task", "accuracy", paper="MNLI"), "PPL": Column("pretraining", "perplexity", paper="PPL")}
    published = {"plain": {"MNLI": 84.0, "PPL": 4.0}, "frozen": {"MNLI": 80.0}}
    return Table("Table 0", rows, columns, baseline="plain", published=published, pretraining_seeds=2)


@pytest.mark.usefixtures("quick")
def test_a_table_is_run_resumed_and_reported(small, tmp_path, monkeypatch):
    reproduction = Reproduction(small, tmp_path / "out")
    runs = [*reproduction.runs()]
    # The second row shares the models of the first one.
    assert [(run.row, run.name) for run in runs[:4]] == [
        ("plain", "pretraining"),
        ("plain", "task"),
        ("frozen", "pretraining"),
        ("frozen", "task"),
    ]
    assert runs[0].config.run == runs[2].config.run == runs[3].config.init
    assert [run.config.train.seed for run in runs if run.name == "pretraining"] == [0, 0, 1, 1]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert reproduction.run() == signal.SIGTERM
    assert reproduction.run() is None
    cells = {(cell.row, cell.column): cell for cell in reproduction.cells()}
    last = read_metrics(tmp_path / "out" / "plain" / "1" / "task-0", split="dev")[-1]
    assert cells["plain", "task"].scores[1, 0] == pytest.approx(100 * last["accuracy"])
    losses = [
        read_metrics(tmp_path / "out" / "plain" / str(seed) / "pretraining", split="held_out")[-1]["mlm_loss"] for seed in range(2)
    ]
    np.testing.assert_allclose(cells["plain", "PPL"].scores[:, 0], np.exp(losses))
    # Nothing is trained twice.
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, lambda: pytest.fail("a step was taken"))
        assert reproduction.run() is None
    path = report.write(reproduction, {"scale": "laptop"})
    text, content = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    assert "| plain | " in text
    assert "Not finished" not in text
    assert {cell["row"] for cell in content["cells"]} == {"plain", "frozen"}
    assert len(content["configs"]) == len(runs)
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_a_changed_recipe_is_not_taken_for_the_finished_one(small, tmp_path):
    reproduction = Reproduction(small, tmp_path / "out")
    run = next(reproduction.runs())
    Path(run.config.run).mkdir(parents=True)
    stored = {"config": json.loads(run.config.to_json()), "scores": {"perplexity": 3.0}}
    (Path(run.config.run) / "result.json").write_text(json.dumps(stored))
    assert reproduction.cells()[1].finished == 1
    changed = dataclasses.replace(small.rows["plain"].pretraining, optim=OptimConfig(peak_lr=2e-3, warmup_steps=1))
    rows = {name: dataclasses.replace(row, pretraining=changed) for name, row in small.rows.items()}
    assert Reproduction(dataclasses.replace(small, rows=rows), tmp_path / "out").cells()[1].finished == 0


def test_the_multibootstrap_covers_both_kinds_of_seeds():
    """Its variance is that of means over independently drawn rows and columns: the sum of both variances of means."""
    rng = np.random.default_rng(1)
    models, runs = rng.normal(0, 2, (40, 1)), rng.normal(0, 1, (1, 30))
    scores = 80 + models + runs
    interval = multibootstrap(scores)
    error = np.sqrt(models.var() / 40 + runs.var() / 30)
    assert interval.mean == pytest.approx(scores.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    single = multibootstrap(np.array([[3.0]]))
    assert (single.low, single.high, single.excludes(0.0)) == (3.0, 3.0, False)


def test_comparisons_are_paired_and_say_whether_the_order_is_the_papers(small):
    base = np.array([[80.0], [90.0]])
    cells = [Cell("plain", "task", base), Cell("frozen", "task", base - np.array([[3.0], [4.0]])), Cell("plain", "PPL", base)]
    (comparison,) = report.compare(small, cells).values()
    # The seeds differ by ten points, the pairs by one.
    assert comparison.ours == (-3.5, -4.0, -3.0)
    assert (comparison.paper, comparison.verdict) == (-4.0, "as in the paper")
    cells[1] = Cell("frozen", "task", base + np.array([[3.0], [4.0]]))
    assert report.compare(small, cells)["frozen", "task"].verdict == "opposite to the paper"
    cells[1] = Cell("frozen", "task", base + np.array([[-3.0], [4.0]]))
    assert report.compare(small, cells)["frozen", "task"].verdict == "not decided"
    cells[1] = Cell("frozen", "task", np.array([[80.0], [np.nan]]))
    assert report.compare(small, cells) == {}
    assert "Not finished: frozen, task" in report.markdown(small, cells, {"scale": "laptop"})


def test_a_value_inside_and_one_outside_the_band(small):
    bands = {"plain": {"MNLI": (83.0, 85.0)}, "frozen": {"MNLI": (79.0, 81.0)}}
    table = dataclasses.replace(small, bands=bands)
    cells = [Cell("plain", "task", np.array([[84.5]])), Cell("frozen", "task", np.array([[70.0]]))]
    text = report.markdown(table, cells, {"scale": "full"})
    assert "| plain | 84.50, inside | 84 (83 to 85) |" in text
    assert "| frozen | 70.00, outside | 80 (79 to 81) |" in text
    assert sampling_band(50.0, 10_000) == (49.0, 51.0)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.py")))
@pytest.mark.parametrize("scale", ["full", "small", "laptop"])
def test_the_tables_of_the_repository(name, scale, tmp_path, monkeypatch):
    """Every recipe of every table is a valid config, and every cell that has none has a reason."""
    monkeypatch.chdir(tmp_path)
    inputs = Inputs(tmp_path)
    table = load_table(name, scale, inputs, EXPERIMENTS)
    assert [*Reproduction(table, tmp_path / "out").runs()]
    missing = [column.paper for column in table.columns.values() if column.paper is not None]
    assert all(any(paper in values for values in table.published.values()) for paper in missing)
    with pytest.raises(UserError, match="does not exist"):
        inputs.check()


def test_the_papers_phases_are_in_the_full_recipe():
    table = load_table("table5", "full", Inputs(Path("data")), EXPERIMENTS)
    base = table.rows["BERT-Base"].pretraining
    assert (base.train.steps, base.data.sequence_length, base.data.batch_size) == (1_000_000, 128, 256)
    assert base.phases == (Phase(900_000, sequence_length=512),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table99"], "There is no table 'table99'"),
        (["table5", "--recipes", "nowhere"], "There is no table 'table5' in nowhere, which has: none"),
        (["table5", "--scale", "full", "--data", "no-data"], "no-data/wiki_books does not exist. Prepare English Wikipedia"),
    ],
)
def test_what_cannot_be_reproduced_is_said(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(EXPERIMENTS.parent.parent)
    assert cli.main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_the_wrong_size_is_refused(init, tmp_path):
    row = Row(checkpoint=init, size=bert_jax.ModelConfig(), finetuning={"rte": config_of("rte", "", "GLUE", "")})
    table = Table("Table 0", {"BERT-Base": row}, {"RTE": Column("rte", "accuracy")}, baseline="BERT-Base")
    with pytest.raises(UserError, match="has another size than BERT-Base: num_hidden_layers 2 instead of 12"):
        Reproduction(table, tmp_path).run()
