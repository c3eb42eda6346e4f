"""Pretraining a model further: what it starts from, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal

import jax
import numpy as np
import pytest

import bert_jax
import bert_jax.data.building
from bert_jax import convert, tokenizers
from bert_jax.config.optimizer import OptimConfig
from bert_jax.errors import UserError
from bert_jax.training import initialization, launchers, pretraining
from bert_jax.training.pretraining import PretrainingJob, pretrain
from tests.runs import interrupt_at
from tests.training.test_pretraining import assert_bit_equal, elsewhere

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture
def first(run_config):
    pretrain(run_config)
    return run_config


def started(config):
    """The parameters of a run before its first step."""
    opened, data, policy = pretraining.open_run(config)
    source = initialization.read(opened, data.tokenizer)
    job = PretrainingJob(opened, data, policy, launchers.launch(opened), source)
    job.batches.close()
    return jax.device_get(
        launchers.create(job.init, job.launcher.shardings(jax.eval_shape(job.init, job.source)), job.source).params
    )


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_from_a_model_and_resumes(first, tmp_path, monkeypatch, capsys):
    config = elsewhere(first, tmp_path, "second", init=first.run)
    loaded, params = convert.read(first.run).params, started(config)
    jax.tree.map(np.testing.assert_array_equal, params, {name: loaded[name] for name in params})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert pretrain(config).signal == signal.SIGTERM
    assert pretrain(config).step == 8
    assert f"initial parameters: {first.run}" in capsys.readouterr().err
    unbroken = elsewhere(config, tmp_path, "unbroken")
    pretrain(unbroken)
    assert_bit_equal(config, unbroken)


@pytest.mark.usefixtures("quick")
def test_without_learning_the_scores_are_those_of_the_model(first, tmp_path):
    """The model went through the format of transformers in between."""
    before = pretrain(first).held_out
    convert.write(convert.read(first.run), tmp_path / "exported", to="hf")
    still = OptimConfig(peak_lr=1e-12, warmup_steps=1)
    after = pretrain(elsewhere(first, tmp_path, "still", init=str(tmp_path / "exported"), optim=still)).held_out
    for name in ("mlm_loss", "nsp_accuracy", "mlm_accuracy"):
        assert after[name] == pytest.approx(before[name], rel=1e-5)


@pytest.mark.usefixtures("quick")
def test_a_model_without_a_head_gets_a_new_one(first, tmp_path, capsys):
    model = convert.read(first.run)
    params = {name: values for name, values in model.params.items() if name != "nsp"}
    convert.write(dataclasses.replace(model, params=params), tmp_path / "mlm", to="hf")
    config = elsewhere(first, tmp_path, "second", init=str(tmp_path / "mlm"))
    assert "nsp" in started(config)
    assert pretrain(config).step == 8
    assert "new heads: nsp" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_new_words_start_as_the_mean_of_their_parts(first, tmp_path):
    tokenizer = convert.read_tokenizer(first.run)
    known = [token for token in tokenizer.tokens if token.isalpha() and len(token) > 2]
    candidates = (first_half + second_half for first_half, second_half in itertools.combinations(known, 2))
    word = next(
        word for word in candidates if len(ids := tokenizer.split([word])[0]) > 1 and tokenizer.special_tokens.unk not in ids
    )
    tokenizers.create(tokenizers.extend(tokenizer, [word] * 9, 1).tokenizer, tmp_path / "vocab")
    larger = tokenizers.load(tmp_path / "vocab")
    assert word in larger.tokens
    documents = [[f"{word} is a word of this domain", "and here is another sentence"]] * 60
    bert_jax.data.building.write_corpus(documents, tmp_path / "corpus", larger, held_out=0.2)
    data = dataclasses.replace(first.data, corpus=str(tmp_path / "corpus"))
    model = dataclasses.replace(first.model, vocab_size=convert.read(first.run, vocab=tmp_path / "vocab").config.vocab_size)
    config = elsewhere(first, tmp_path, "second", init=first.run, data=data, model=model)
    with pytest.raises(UserError, match=r"vocab_size \d+ instead of"):
        pretrain(config)
    config = dataclasses.replace(config, init_vocab=str(tmp_path / "vocab"))
    table, old = started(config)["bert"]["embeddings"]["word"], convert.read(first.run).params["bert"]["embeddings"]["word"]
    parts = tokenizer.split([word])[0]
    np.testing.assert_allclose(table[larger.tokens.index(word)], np.asarray(old)[parts].mean(0), rtol=1e-5, atol=1e-7)
    assert pretrain(config).step == 8


@pytest.mark.usefixtures("quick")
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(first, tmp_path):
    deeper = dataclasses.replace(first.model, num_hidden_layers=first.model.num_hidden_layers + 1)
    config = elsewhere(first, tmp_path, "second", init=first.run, model=deeper)
    with pytest.raises(UserError, match=r"num_hidden_layers \d instead of"):
        pretrain(config)
    with pytest.raises(UserError, match="There is no model"):
        pretrain(dataclasses.replace(config, init=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="give both"):
        dataclasses.replace(first, init_vocab="vocab")
    assert not (tmp_path / "second").exists()
