"""Fine-tuning configs: derived optimizer, model and length of the run, JSON, and refusals in one sentence."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config.finetuning import FREE_ON_RESUME, FinetuneConfig, ModelOverrides, TaskDataConfig
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.validation import differences
from bert_jax.errors import UserError

USUAL = FinetuneConfig("run", "rte", "init", "data")


def test_the_defaults_are_the_originals():
    """``run_classifier.py``: BERT Adam, decay 0.01, 3 epochs of batches of 32 at 5e-5, warm-up of a tenth."""
    assert (USUAL.batch_size, USUAL.epochs, USUAL.learning_rates, USUAL.task_data.sequence_length) == (32, 3.0, (5e-5,), 128)
    assert USUAL.optim_config(1000) == OptimConfig(
        name="bert_adam", peak_lr=5e-5, warmup_steps=100, decay="from_zero", weight_decay=0.01, clip_norm=1.0, layer_decay=1.0
    )


def test_the_optimizer_keeps_its_fields():
    optim = OptimConfig(name="lamb", decay="from_peak", weight_decay=0.1, layer_decay=0.9, accumulate=4, b2=0.98)
    config = dataclasses.replace(USUAL, optim=optim, learning_rates=(3e-5, 2e-5), warmup_ratio=0.06)
    assert config.optim_config(99) == dataclasses.replace(optim, peak_lr=3e-5, warmup_steps=5)


@pytest.mark.parametrize(
    ("config", "overrides", "changes"),
    [
        (ModelConfig(), ModelOverrides(), {}),
        (ModelConfig(), ModelOverrides(dtype="bfloat16", layers="scan"), {"dtype": "bfloat16", "layers": "scan"}),
        (ModelConfig(), ModelOverrides(attention="xla"), {"attention": "xla"}),
        (
            ModelConfig(classifier_dropout=0.5),
            ModelOverrides(dropout=0.2),
            {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "classifier_dropout": None},
        ),
        (ModelConfig(classifier_dropout=0.5), ModelOverrides(dropout=None), {}),
        (ModelConfig(), ModelOverrides(states="sum_all", lstm_layers=2), {"states": "sum_all", "lstm_layers": 2}),
        # A stored BiLSTM is kept without overrides.
        (ModelConfig(states="sum_all", lstm_layers=2), ModelOverrides(), {}),
    ],
)
def test_the_model_is_the_pretrained_one_with_overrides(config, overrides, changes):
    assert dataclasses.replace(USUAL, model=overrides).model_config(config) == dataclasses.replace(config, **changes)


def test_epochs_become_steps():
    train = dataclasses.replace(USUAL, eval_every=0.5, seed=3, keep=2).train_config(90, 320)
    assert (train.steps, train.eval_every, train.save_every, train.seed, train.keep) == (90, 5, 5, 3, 2)
    assert dataclasses.replace(USUAL, eval_every=0.001).train_config(90, 320).eval_every == 1
    assert dataclasses.replace(USUAL, eval_every=50.0).train_config(90, 320).eval_every == 90


@given(st.integers(8, 3000), st.sampled_from([8, 16, 32]), st.integers(1, 12), st.sampled_from([0.5, 1.0, 2.0]))
def test_no_evaluation_right_before_the_last(examples, batch_size, epochs, eval_every):
    steps = max(1, examples * epochs // batch_size)
    config = dataclasses.replace(USUAL, batch_size=batch_size, eval_every=eval_every)
    every = config.train_config(steps, examples).eval_every
    evaluated = sorted({*range(every, steps + 1, every), steps})
    assert len(evaluated) == 1 or evaluated[-1] - evaluated[-2] > every / 3
    assert every >= min(steps, max(1, int(eval_every * examples / batch_size)))


def test_evaluations_of_odd_epochs():
    """One epoch of 36.9 steps gave evaluations at 36 and 37 if steps are rounded up; two of 255.7 steps at 255, 510 and 511."""
    assert USUAL.train_config(37, 1180).eval_every == 37
    assert USUAL.train_config(511, 8183).eval_every == 256


def test_an_ensemble_has_a_run_for_each_rate_and_seed():
    assert dataclasses.replace(USUAL, seeds=5, learning_rates=(1e-5, 2e-5)).num_runs == 10


def test_json_is_inverted():
    config = dataclasses.replace(
        USUAL,
        task="multilabel",
        task_data=TaskDataConfig(columns=("label", "text"), thresholds=(0.25, 0.5), packing=1),
        model=ModelOverrides(dropout=0.0, lstm_layers=1),
        optim=OptimConfig(name="adamw", layer_decay=0.95),
        mesh=MeshConfig(4, 2, 1),
        patience=3,
    )
    assert FinetuneConfig.from_json(config.to_json()) == config
    stored = json.loads(config.to_json())
    stored["task_data"]["unknown"] = 1
    with pytest.raises(UserError, match=r"config.task_data has no field unknown"):
        FinetuneConfig.from_json(json.dumps(stored))


def test_some_fields_may_change_on_resume():
    moved = dataclasses.replace(USUAL, run="other", model=ModelOverrides(attention="reference"), patience=2, keep=4)
    assert differences(USUAL, moved, FREE_ON_RESUME) == []
    changed = dataclasses.replace(
        USUAL, model=ModelOverrides(dropout=0.3), task_data=TaskDataConfig(sequence_length=64), optim=OptimConfig(name="lamb")
    )
    assert differences(USUAL, changed, FREE_ON_RESUME) == [
        "task_data.sequence_length: 128 -> 64",
        "model.dropout: None -> 0.3",
        "optim.name: bert_adam -> lamb",
    ]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TaskDataConfig(sequence_length=4), "sequence_length is 4; a pair needs at least 5 tokens."),
        (
            lambda: TaskDataConfig(packing=True),
            "packing is True; give the maximum number of texts in a row",
        ),
        (lambda: TaskDataConfig(packing=0), "packing is 0; it must be greater than 0"),
        (lambda: TaskDataConfig(doc_stride=0), "doc_stride is 0"),
        (lambda: TaskDataConfig(max_answer_length=-1), "max_answer_length is -1"),
        (lambda: TaskDataConfig(thresholds=(0.5, 1.5)), "A threshold is 1.5; thresholds are probabilities and must lie in [0, 1]."),
        (lambda: ModelOverrides(dropout=1.0), "model.dropout is 1.0"),
        (lambda: ModelOverrides(states="sum_all"), "model.states is sum_all, which needs a BiLSTM; set --model.lstm-layers"),
        (
            lambda: dataclasses.replace(USUAL, optim=OptimConfig(peak_lr=2e-5)),
            "optim.peak_lr is 2e-05; set the peaks of fine-tuning runs with --learning-rates.",
        ),
        (
            lambda: dataclasses.replace(USUAL, optim=OptimConfig(warmup_steps=100)),
            "optim.warmup_steps is 100; set the warm-up of fine-tuning runs with --warmup-ratio.",
        ),
        (lambda: dataclasses.replace(USUAL, learning_rates=()), "learning_rates is empty"),
        (lambda: dataclasses.replace(USUAL, learning_rates=(1e-5, 0.0)), "A learning rate is 0.0"),
        (lambda: dataclasses.replace(USUAL, warmup_ratio=1.0), "warmup_ratio is 1.0"),
        (lambda: dataclasses.replace(USUAL, runs_per_device=0), "runs_per_device is 0; it must be greater than 0."),
        (lambda: dataclasses.replace(USUAL, patience=0), "patience is 0; it must be greater than 0."),
        (lambda: dataclasses.replace(USUAL, reinit_layers=-1), "reinit_layers is -1; it must not be negative."),
        (lambda: dataclasses.replace(USUAL, freeze_encoder=True, reinit_layers=1), "freeze_encoder trains no layer"),
        (
            lambda: dataclasses.replace(USUAL, freeze_encoder=True, optim=OptimConfig(layer_decay=0.9)),
            "freeze_encoder trains no layer of the encoder; leave out --optim.layer-decay",
        ),
        (lambda: dataclasses.replace(USUAL, seeds=2, parallel="pmap"), "An ensemble of runs is distributed over the devices"),
        (lambda: dataclasses.replace(USUAL, seeds=2, mesh=MeshConfig(2, 1, 1)), "An ensemble of runs"),
        (
            lambda: dataclasses.replace(USUAL, parallel="pmap", mesh=MeshConfig(fsdp=2)),
            "parallel is pmap, which replicates parameters over all devices, but the mesh is data -1 x fsdp 2 x tensor 1",
        ),
        (lambda: dataclasses.replace(USUAL, seed=-1), "seed is -1; it must not be negative."),
        (lambda: dataclasses.replace(USUAL, task="ax"), "AX has no training data; fine-tune on mnli"),
    ],
)
def test_refused_values(make, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        make()
