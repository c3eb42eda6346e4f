"""Numbers that change: what the named ones are, what is refused before a run, and that nothing is compiled twice."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config.data import DataConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.run import Config
from bert_jax.config.schedules import depends_on_loss, identity
from bert_jax.errors import UserError
from bert_jax.masking import policy, replacement, schedules
from tests.conftest import POLICY, make_batch, with_policy

KEY = jax.random.key(0)


def falling(step):
    return 0.3 - 0.15 * step / 100


def with_if(step):
    return 0.3 if step < 50 else 0.15


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linear(0.3, 0.15)", {0: 0.3, 50: 0.225, 100: 0.15, 1000: 0.15}),
        ("cosine(0.3, 0.1)", {0: 0.3, 25: 0.2 + 0.1 * math.cos(math.pi / 4), 50: 0.2, 100: 0.1}),
        ("steps(0.3, 0.2, 0.1, 0.4)", {0: 0.3, 24: 0.3, 25: 0.2, 50: 0.1, 74: 0.1, 75: 0.4, 100: 0.4}),
        (" cyclic( 0.1,0.3 , 4 )", {0: 0.1, 6: 0.196, 25: 0.1, 50: 0.1, 75: 0.1, 100: 0.1}),
        ("cyclic(0.1, 0.3, 2)", {0: 0.1, 25: 0.3, 50: 0.1, 75: 0.3, 100: 0.1}),
    ],
)
def test_named_schedules(text, expected):
    for step, value in expected.items():
        assert float(schedules.value(text, step, 100)) == pytest.approx(value, abs=1e-6)


def test_a_schedule_may_follow_the_loss():
    read = functools.partial(schedules.value, "adaptive(0.4, 0.1, 7, 3)", 5, 100)
    assert [round(float(read(jnp.float32(loss))), 6) for loss in (9.0, 7.0, 5.0, 4.0, 3.0, 1.0)] == [
        0.4,
        0.4,
        0.25,
        0.175,
        0.1,
        0.1,
    ]
    assert float(schedules.value(lambda step, loss: loss / 10 + step, 1, None, jnp.float32(2.0))) == pytest.approx(1.2)
    for number in ("adaptive(0.4, 0.1, 7, 3)", lambda step, loss: loss):
        assert depends_on_loss(number)
        with pytest.raises(UserError, match="depends on the loss; pass it as loss="):
            schedules.value(number, 0, 100)
    assert not any(map(depends_on_loss, (0.2, "linear(0.3, 0.15)", falling)))


def test_functions_and_optax():
    assert float(schedules.value(falling, 50, None)) == pytest.approx(0.225)
    # After the last step a function keeps its value, so that a run never uses an unchecked one.
    assert float(schedules.value(falling, 150, 100)) == pytest.approx(0.15)
    warm = optax.join_schedules([optax.constant_schedule(0.3), optax.linear_schedule(0.3, 0.15, 50)], [50])
    found = schedules.table([warm, 0.1], 100)
    assert found.shape == (2, 101)
    np.testing.assert_allclose(found[0, [0, 50, 75, 100]], [0.3, 0.3, 0.225, 0.15], atol=1e-6)
    np.testing.assert_array_equal(found[1], np.float32(0.1))
    assert schedules.value(0.15, 7, None) == 0.15
    assert isinstance(schedules.value(0.15, 7, None), float)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("linear", "give a number, or one of linear(begin, end)"),
        ("quadratic(1, 2)", "give a number, or one of"),
        ("linear(0.3)", "its arguments are begin, end"),
        ("linear(0.3, 0.2, 0.1)", "its arguments are begin, end"),
        ("linear(a, b)", "must be numbers"),
        ("linear(nan, 0.2)", "must be finite"),
        ("adaptive(0.3, 0.1, 3, 7)", "high must be above low"),
        ("cyclic(0.3, 0.1, 0)", "cycles must be greater than 0"),
        ("", "give a number"),
    ],
)
def test_text_that_is_no_schedule(text, sentence):
    with pytest.raises(UserError) as refused:
        MaskPolicy(rate=text)
    assert str(refused.value).startswith(f"mask.rate is {text!r}; ")
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rate": "linear(0.3, 1.5)"}, "mask.rate is 1.0"),
        ({"rate": lambda step: 0.1 - step / 100}, "mask.rate is -0.01 at step 11; it must lie in [0, 1]"),
        ({"rate": lambda step: jnp.where(step == 70, jnp.nan, 0.15)}, "mask.rate is nan at step 70"),
        ({"rate": lambda step, loss: loss}, "for some loss; it must lie in [0, 1]"),
        ({"rate": with_if}, "with_if cannot be compiled"),
        ({"rate": lambda step: "much"}, "is not a function of the step that returns a number"),
        ({"rate": lambda: 0.1}, "is not a function of the step that returns a number"),
        ({"replace": ("linear(0.8, 0.5)", 0.1, 0.1)}, "must sum to 1"),
        (
            {
                "rate": lambda step: jnp.where(step == 407, jnp.nan, 0.4),
                "prediction_rate": "adaptive(0.3, 0.1, 7, 3)",
                "steps": 1000,
            },
            "mask.rate is nan at step 407",
        ),
        ({"prediction_rate": "linear(0.1, 0.2)"}, "only selected tokens can be predicted"),
        (
            {"rate": "linear(0.3, 0.15)", "max_predictions": 20},
            "reaches 0.3, 38 predictions of 128 tokens, but mask.max_predictions is 20",
        ),
        ({"rate": "linear(0.3, 0.15)", "steps": None}, "has schedules but no number of steps"),
    ],
)
def test_what_is_refused_before_a_run(changed, sentence):
    given = with_policy(POLICY, **{"steps": 100} | changed)
    with pytest.raises(UserError) as refused:
        policy.check(given, 128)
    assert sentence in str(refused.value)


def test_shares_may_change_together():
    given = with_policy(POLICY, steps=100, replace=("linear(1.0, 0.8)", "linear(0, 0.1)", "linear(0, 0.1)"))
    policy.check(given, 128)
    batch = make_batch([[128]] * 50, 128)
    first, last = (jax.jit(replacement.mask_tokens, static_argnames="policy")(KEY, batch, given, step) for step in (0, 100))
    assert (np.asarray(first["mlm_kinds"]) == replacement.MASKED).all()
    kept = (np.asarray(last["mlm_kinds"]) == replacement.KEPT)[np.asarray(last["mlm_weights"]) > 0].mean()
    assert abs(kept - 0.1) < 3 * math.sqrt(0.09 / last["mlm_weights"].sum())


@pytest.mark.parametrize(
    ("select", "rate"),
    [("token", "linear(0.3, 0.15)"), ("word", falling), ("span", optax.cosine_decay_schedule(0.3, 100, 0.5))],
)
def test_one_compile_for_a_whole_schedule(rate, select):
    """And as many predictions at each step as its rate says."""
    given = with_policy(POLICY, rate=rate, steps=100, select=select)
    batch = make_batch([[100], [60, 20]], 128)
    masker = jax.jit(lambda batch, step: replacement.mask_tokens(KEY, batch, given, step))
    for step in range(0, 101, 20):
        masked = masker(batch, jnp.int32(step))
        share = float(schedules.value(rate, step, 100))
        counts = [round(100 * share), round(60 * share) + round(20 * share)]
        found = np.asarray(masked["mlm_weights"].sum(1))
        # Whole words may leave room for a token.
        slack = {"token": 0, "t5": 0}.get(select, 2)
        assert (found <= counts).all()
        assert (found >= np.array(counts) - slack).all()
        assert int(masked["mlm_dropped"].sum()) == 0
    assert masker._cache_size() == 1
    assert masked["mlm_positions"].shape[1] == replacement.prediction_slots(given, 128, 2)


def test_a_constant_schedule_is_the_constant():
    batch = make_batch([[length] for length in range(5, 129)], 128)
    mask = jax.jit(replacement.mask_tokens, static_argnames="policy")
    constant = mask(KEY, batch, with_policy(POLICY, rate=0.25), 3)
    scheduled = mask(KEY, batch, with_policy(POLICY, rate="linear(0.25, 0.25)", steps=10), 3)
    jax.tree.map(np.testing.assert_array_equal, constant, scheduled)


def test_configs_with_schedules_are_stored_and_read():
    given = MaskPolicy(rate="linear(0.3, 0.15)", prediction_rate=0.15, steps=100, replace=("linear(1, 0.8)", 0.0, "linear(0, 0.2)"))
    config = Config(run="r", data=DataConfig("c"), mask=given)
    assert Config.from_json(config.to_json()) == config


def test_a_function_is_stored_by_its_identity():
    config = Config(run="r", data=DataConfig("c"), mask=MaskPolicy(rate=falling, steps=100))
    stored = Config.from_json(config.to_json())
    assert re.fullmatch("function falling [0-9a-f]{16}", stored.mask.rate)
    assert Config.from_json(stored.to_json()) == stored
    other = dataclasses.replace(config, mask=dataclasses.replace(config.mask, rate=lambda step: falling(step) / 2))
    assert Config.from_json(other.to_json()).mask.rate.split()[-1] != stored.mask.rate.split()[-1]
    with pytest.raises(UserError, match="pass the function again"):
        schedules.value(stored.mask.rate, 0, 100)


def test_two_functions_have_one_identity_only_if_they_compute_the_same():
    """Functions that agree at many steps, that differ in a closed-over array or in one far step, and a copy."""

    def named(body):
        body.__qualname__ = "schedule"
        return identity(body, jnp.int32(0))

    table = np.linspace(0.1, 0.3, 1001).astype(np.float32)
    other = table.copy()
    other[617] += 1e-6
    functions = [
        lambda step: 0.3 - step / 1000,
        lambda step: jnp.where(step == 613, 0.2, 0.3 - step / 1000),
        lambda step: jnp.where(step == 614, 0.2, 0.3 - step / 1000),
        lambda step: jnp.asarray(table)[step],
        lambda step: jnp.asarray(other)[step],
    ]
    identities = [named(function) for function in functions]
    assert len(set(identities)) == len(functions)
    copy = table.copy()
    assert named(lambda step: jnp.asarray(copy)[step]) == identities[3]
