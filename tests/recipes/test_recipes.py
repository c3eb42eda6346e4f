"""The recipes of the repository, their laptop variants, and runs of a given time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import bert_jax
from bert_jax import cli
from bert_jax.cli.pretrain import load_experiment
from bert_jax.config.data import DataConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.phases import Phase
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.errors import UserError
from bert_jax.evaluation import benchmark
from bert_jax.recipes import laptop
from bert_jax.recipes.budget import with_steps, within
from bert_jax.recipes.python_files import call
from bert_jax.training.learning_rate import schedule
from bert_jax.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unoptimized")

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
RECIPES = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "def config()" in path.read_text())
WITH_LAPTOP = [name for name in RECIPES if "def laptop()" in (EXPERIMENTS / f"{name}.py").read_text()]


def recipe(name):
    return load_experiment(EXPERIMENTS / f"{name}.py")


def test_every_recipe_is_a_valid_config_of_its_own():
    assert {"bert_base", "bert_large", "open_readme", "nvidia_large", "mlperf_large", "roberta", "twenty_four_hours"} < {*RECIPES}
    assert {"mosaic_bert", "cramming", "domain", "multilingual", "babylm", "quickstart"} < {*RECIPES}
    texts = {name: recipe(name).to_json() for name in RECIPES}
    assert len({*texts.values()}) == len(texts)
    assert all(Config.from_json(text).to_json() == text for text in texts.values())
    runs = [recipe(name).run for name in RECIPES]
    assert len({*runs}) == len(runs)


def test_every_recipe_names_its_command():
    for name in RECIPES:
        doc = (EXPERIMENTS / f"{name}.py").read_text().split('"""')[1]
        assert f"bert-jax pretrain experiments/{name}.py" in doc, name


def test_recipes_keep_what_their_papers_state():
    base = recipe("bert_base")
    assert (base.train.steps, base.data.batch_size, base.optim.peak_lr) == (1_000_000, 256, 1e-4)
    assert [(start, part.data.sequence_length) for start, part in base.parts()] == [(0, 128), (900_000, 512)]
    nvidia = recipe("nvidia_large")
    rate = schedule(nvidia.optim, nvidia.train.steps, nvidia.phases)
    # The peak of each phase is reached at the end of its own warm-up, up to the decay that starts at its first step.
    assert float(rate(2000)) == pytest.approx(6e-3 * (1 - 2001 / 7038) ** 0.5, rel=1e-4)
    assert float(rate(7038)) < 1e-4
    assert float(rate(7038 + 199)) == pytest.approx(4e-3 * (1 - 200 / 1563) ** 0.5, rel=1e-2)
    strict = load_experiment(f"{EXPERIMENTS / 'babylm.py'}:strict")
    assert strict.train.save_at_words.split(",")[:3] == ["1M", "2M", "3M"]
    assert strict.train.save_at_words.split(",")[-1] == "1000M"


@pytest.mark.parametrize("name", WITH_LAPTOP)
def test_a_laptop_variant_keeps_the_methods(name):
    full, small = recipe(name), load_experiment(f"{EXPERIMENTS / name}.py:laptop")
    assert (small.model.num_hidden_layers, small.model.hidden_size, small.train.steps) == (2, 128, 800)
    assert small.run != full.run
    assert (small.mask, small.data.pairs, small.optim.name, small.optim.decay) == (
        full.mask,
        full.data.pairs,
        full.optim.name,
        full.optim.decay,
    )
    assert len(small.phases) == len(full.phases)
    for mine, theirs in zip(small.phases, full.phases, strict=True):
        assert mine.start / 800 == pytest.approx(theirs.start / full.train.steps, abs=1e-3)


@pytest.mark.usefixtures("quick")
def test_a_laptop_variant_with_two_phases_trains(run_config):
    full = recipe("nvidia_large")
    small = laptop(full, steps=8, corpus=run_config.data.corpus)
    model = dataclasses.replace(small.model, hidden_size=32, intermediate_size=64, layers="scan")
    data = dataclasses.replace(small.data, batch_size=8)
    phases = tuple(dataclasses.replace(phase, batch_size=8) for phase in small.phases)
    config = dataclasses.replace(small, run=run_config.run, model=model, data=data, phases=phases)
    result = pretrain(config)
    assert result.step == 8
    assert result.held_out is not None


PHASED = Config(
    "run",
    DataConfig("corpus", sequence_length=128, batch_size=64),
    mask=MaskPolicy(rate="linear(0.3, 0.15)", steps=500),
    optim=OptimConfig(warmup_steps=100),
    train=TrainConfig(steps=1000),
    phases=(Phase(900, sequence_length=512, peak_lr=1e-4, warmup_steps=10),),
)


def test_another_number_of_steps_keeps_the_shares():
    longer = with_steps(PHASED, 20_000)
    assert (longer.train.steps, longer.optim.warmup_steps, longer.mask.steps) == (20_000, 2_000, 10_000)
    assert (longer.phases[0].start, longer.phases[0].warmup_steps, longer.phases[0].sequence_length) == (18_000, 200, 512)
    assert with_steps(longer, 1000) == PHASED


def test_a_run_of_hours_has_the_steps_that_fit(monkeypatch, tmp_path):
    """900 steps of half a second and 100 of two are 650 seconds, of which an hour has 5.538 times as many."""
    seconds = {128: 0.5, 512: 2.0}

    def measured(config, *, steps):
        return benchmark.Report("", 0.0, [seconds[config.data.sequence_length]] * steps, 1, {}, 1.0, 1, None)

    monkeypatch.setattr(benchmark, "run", measured)
    config = dataclasses.replace(PHASED, run=str(tmp_path / "run"))
    found = within(config, 1.0)
    assert (found.train.steps, found.phases[0].start) == (5538, 4984)
    # A run that has begun is not measured again.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(found.to_json())
    monkeypatch.setattr(benchmark, "run", lambda *_, **__: pytest.fail("measured"))
    assert within(config, 7.0) == found
    with pytest.raises(UserError, match="hours is -1"):
        within(config, -1.0)
    with pytest.raises(UserError, match="either that or hours"):
        within(dataclasses.replace(config, phases=(), train=TrainConfig(words="1M")), 1.0)


@pytest.mark.usefixtures("quick")
def test_hours_on_the_command_line(run_config, tmp_path, capsys):
    corpus, run = run_config.data.corpus, run_config.run
    (tmp_path / "timed.py").write_text(
        f"import bert_jax\ndef tiny():\n    return bert_jax.Config(run={run!r}, data=bert_jax.DataConfig({corpus!r}, 32, 16), "
        "model=bert_jax.ModelConfig(vocab_size=2000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, "
        "intermediate_size=64, max_position_embeddings=64, layers='scan'), optim=bert_jax.OptimConfig(warmup_steps=10), "
        "train=bert_jax.TrainConfig(steps=100, eval_batches=1))\n"
    )
    arguments = [
        "pretrain",
        f"{tmp_path / 'timed.py'}:tiny",
        "--hours",
        "0.0002",
        f"--model.vocab-size={run_config.model.vocab_size}",
    ]
    assert cli.main(arguments) == 0
    first = Config.from_json((Path(run) / "config.json").read_text())
    assert first.optim.warmup_steps == round(first.train.steps / 10)
    assert f"--train.steps {first.train.steps} repeats this run" in capsys.readouterr().err
    # The same command finds a complete run.
    assert cli.main(arguments) == 0
    assert "is complete" in capsys.readouterr().err
    assert cli.main([*arguments[:2], "--hours", "soon"]) != 0
    assert "give a number of hours" in capsys.readouterr().err


def test_what_a_recipes_file_does_wrong_is_a_sentence(tmp_path):
    def refused(text, match):
        (tmp_path / "recipe.py").write_text(text)
        with pytest.raises(UserError, match=match):
            call(tmp_path / "recipe.py", "table(scale, inputs)", bert_jax.recipes.Table, "full", None)

    refused("x = 1 /", r"recipe\.py, line 1: SyntaxError")
    refused("def table(scale, inputs):\n    return 1 / 0", r"recipe\.py, line 2: ZeroDivisionError")
    refused("def tables(): ...", r"has no function table\(scale, inputs\)")
    refused("def table(scale, inputs):\n    return 3", r"returns an object of type int; it must return a bert_jax\.Table")
    with pytest.raises(UserError, match=r"no function other\(\)"):
        load_experiment(f"{EXPERIMENTS / 'quickstart.py'}:other")
