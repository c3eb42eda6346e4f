"""Held-out losses at fixed mask rates, and sweeps, compared with their definitions."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.config.data import DataConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.data import pipeline
from bert_jax.errors import UserError
from bert_jax.evaluation import mask_rates
from bert_jax.evaluation.sweeps import Sweep
from bert_jax.inference.bert import Bert
from bert_jax.masking.replacement import mask_tokens
from bert_jax.training import losses
from tests.conftest import MODEL

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def bert(tokenizer):
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens), initializer_range=0.3)
    return Bert(config, bert_jax.models.heads.init_params(config, jax.random.key(0)), tokenizer)


def test_scores_are_the_losses_at_each_rate(bert, corpus):
    result = mask_rates.score_at_rates(bert, corpus.path, rates=(0.15, 0.4), sequence_length=32, batch_size=16)
    data, special_tokens = DataConfig("", sequence_length=32, batch_size=16), corpus.tokenizer.special_tokens
    for rate in (0.15, 0.4):
        policy = bert_jax.resolve_policy(MaskPolicy(rate=rate), corpus.tokenizer)
        total = []
        for batch in pipeline.eval_batches(corpus.held_out, special_tokens, data, rows=np.arange(16), limit=None):
            masked = jax.jit(mask_tokens, static_argnums=2)(jax.random.key(0), batch, policy, 0)
            total.append(jax.jit(losses.pretraining, static_argnums=0)(bert.config, bert.params, masked)["mlm_loss"])
        value, weight = np.sum(np.array(total), axis=0)
        assert result[f"{rate:g}"] == pytest.approx(value / weight, rel=1e-5)


def test_rows_longer_than_the_position_table_are_refused(bert, corpus):
    with pytest.raises(UserError, match="The sequence length of 65 tokens exceeds the model's 64 positions; use 64 or fewer"):
        mask_rates.score_at_rates(bert, corpus.path, rates=(0.15,), sequence_length=65)


def test_a_model_with_one_token_type_is_scored_without_pairs(bert, corpus):
    config = dataclasses.replace(bert.config, type_vocab_size=1)
    single = Bert(config, bert_jax.models.heads.init_params(config, jax.random.key(0)), bert.tokenizer)
    scores = mask_rates.score_at_rates(single, corpus.path, rates=(0.15,), sequence_length=32, batch_size=16)
    # Near the loss of a uniform guess, as every model that has not been trained.
    assert scores["0.15"] == pytest.approx(math.log(config.vocab_size), abs=1.5)


def test_parts_are_parts_of_the_whole(bert, corpus):
    """The loss of all predictions lies between those of its parts, and equal losses stay equal."""
    result = mask_rates.score_at_rates(bert, corpus.path, rates=(0.3,), sequence_length=32, batch_size=16)
    assert result.keys() == {"0.3"} | {f"0.3/{name}" for name in (*mask_rates.KINDS, *mask_rates.FREQUENCIES)}
    for names in (mask_rates.KINDS, mask_rates.FREQUENCIES):
        parts = [result[f"0.3/{name}"] for name in names]
        assert min(parts) < result["0.3"] < max(parts)
    blind = bert.params | {"mlm": jax.tree.map(np.zeros_like, bert.params["mlm"])}
    constant = mask_rates.score_at_rates(
        dataclasses.replace(bert, params=blind), corpus.path, rates=(0.3,), sequence_length=32, batch_size=16
    )
    np.testing.assert_allclose([*constant.values()], math.log(bert.config.vocab_size), rtol=1e-5)


def test_scores_do_not_depend_on_the_batches(bert, corpus):
    first, second = (
        mask_rates.score_at_rates(bert, corpus.path, rates=(0.15, 0.8), sequence_length=32, batch_size=size) for size in (8, 24)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-5)


def test_classes_of_frequency():
    np.testing.assert_array_equal(mask_rates._frequency_classes(np.array([50, 30, 0, 10, 5, 5])), [0, 1, 2, 1, 2, 2])
    # A single token may make up more than half of the text.
    np.testing.assert_array_equal(mask_rates._frequency_classes(np.array([5, 95])), [2, 0])


def test_invalid_rates_and_models_are_refused(bert, corpus, tmp_path):
    for rates in ((), (0.0,), (0.15, 1.5)):
        with pytest.raises(UserError, match="each must lie in"):
            mask_rates.score_at_rates(bert, corpus.path, rates=rates)
    with pytest.raises(UserError, match="another vocabulary"):
        mask_rates.score_at_rates(dataclasses.replace(bert, tokenizer=None), corpus.path)
    with pytest.raises(UserError, match="is not a corpus"):
        mask_rates.score_at_rates(bert, tmp_path)


def sweep_of(values):
    return Sweep({name: [] for name in values}, {name: [{"0.15": value} for value in seeds] for name, seeds in values.items()})


def test_tables_of_sweeps():
    table = sweep_of({"a": [1.0, 2.0], "b": [1.5, 2.7]}).table(["0.15"], against="a").splitlines()
    assert table[0] == "| config | 0.15 | 0.15 minus a |"
    assert table[2] == "| a | 1.5000 ± 0.7071 |  |"
    # Differences of .5 and .7.
    assert table[3] == "| b | 2.1000 ± 0.8485 | +0.6000 ± 0.1000 |"
    assert sweep_of({"a": [1.0]}).table(["0.15"]).splitlines()[2] == "| a | 1.0000 |"


@pytest.mark.slow
def test_a_sweep_is_paired_and_resumes(run_config, tmp_path, monkeypatch):
    small = dataclasses.replace(run_config, train=dataclasses.replace(run_config.train, steps=4, eval_every=2))
    configs = {
        "low": dataclasses.replace(small, run=str(tmp_path / "low")),
        "high": dataclasses.replace(small, run=str(tmp_path / "high"), mask=MaskPolicy(rate="linear(0.15, 0.4)")),
    }
    result = bert_jax.sweep(configs, seeds=2, rates=(0.15, 0.8), max_batches=2)
    assert {name: [run.rsplit("/")[-1] for run in runs] for name, runs in result.runs.items()} == {
        "low": ["low-0", "low-1"],
        "high": ["high-0", "high-1"],
    }
    assert len({*result.values("low", "0.15").tolist(), *result.values("high", "0.15").tolist()}) == 4
    # Paired: in the first step, in which the rates are equal, everything is equal.
    low, high = ([bert_jax.training.logging.read_metrics(run) for run in result.runs[name]] for name in ("low", "high"))
    for one, other in zip(low, high, strict=True):
        assert (one[0]["mlm_loss"], one[0]["nsp_loss"], one[0]["grad_norm"]) == tuple(
            other[0][name] for name in ("mlm_loss", "nsp_loss", "grad_norm")
        )
        assert one[1]["mask_rate"] < other[1]["mask_rate"]
    assert low[0][0]["mlm_loss"] != low[1][0]["mlm_loss"]
    # Finished runs are neither trained nor scored again.
    monkeypatch.setattr("bert_jax.evaluation.sweeps.score_at_rates", None)
    assert bert_jax.sweep(configs, seeds=2, rates=(0.15, 0.8), max_batches=2) == result
    assert [bert_jax.training.logging.read_metrics(run) for run in result.runs["low"]] == low
    with pytest.raises(UserError, match="same run directory"):
        bert_jax.sweep({"a": small, "b": small})
