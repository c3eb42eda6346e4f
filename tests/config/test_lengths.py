"""Lengths of runs in words, tokens and epochs."""

from __future__ import annotations

import pytest

from bert_jax import TrainConfig
from bert_jax.config import lengths
from bert_jax.config.lengths import Rates
from bert_jax.errors import UserError

RATES = Rates(words=700.0, tokens=1000.0, epochs=0.01)


@pytest.mark.parametrize(
    ("text", "amount"),
    [(500, 500), ("500", 500), ("10k", 10_000), ("1.5M", 1_500_000), ("3B", 3e9), ("1e3", 1000)],
)
def test_amounts(text, amount):
    assert lengths.parse_amount(text, "x") == amount


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "ten", "1.5 M B", "nan", "inf"])
def test_wrong_amounts_are_refused(text):
    with pytest.raises(UserError, match=r"train\.words is .*; it must be a positive number"):
        TrainConfig(words=text)


def test_a_run_ends_at_the_nearest_step_and_saves_when_a_point_is_reached():
    assert lengths.resolve(TrainConfig(words="70k"), RATES).steps == 100
    assert lengths.resolve(TrainConfig(words=70_300), RATES).steps == 100
    assert lengths.resolve(TrainConfig(tokens="1M"), RATES).steps == 1000
    assert lengths.resolve(TrainConfig(epochs=2.5), RATES).steps == 250
    assert lengths.resolve(TrainConfig(words="1"), RATES).steps == 1
    train = TrainConfig(words="70k", save_at=(7,), save_at_words="700,701,1M", save_at_tokens="50k", save_at_epochs="1,0.995")
    assert lengths.resolve(train, RATES).save_at == (1, 2, 7, 50, 100)
    # Resolved again, as when a stored config is resumed, it stays the same.
    once = lengths.resolve(train, RATES)
    assert lengths.resolve(once, RATES) == once


def test_two_lengths_are_refused():
    with pytest.raises(UserError, match=r"train\.words and train\.epochs both set the length"):
        TrainConfig(words="1M", epochs=2.0)
    with pytest.raises(UserError, match="must be greater than 0"):
        TrainConfig(save_at=(0,))
    with pytest.raises(UserError, match=r"train\.save_at_words is x"):
        TrainConfig(save_at_words="1M,x")
