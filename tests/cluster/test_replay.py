"""Replayed steps: the same bits on one device, and the first layer that is not finite."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bert_jax.cli.pretrain import load_experiment
from bert_jax.cluster import layers
from bert_jax.cluster.replay import replay
from bert_jax.data import pipeline
from bert_jax.errors import RunError, UserError
from bert_jax.training import losses, step
from bert_jax.training.pretraining import pretrain
from tests.cli.test_cli import here
from tests.runs import quickly_compiled
from tests.training.test_anomalies import with_gradient

pytestmark = pytest.mark.usefixtures("unoptimized")


def short(config, **changes):
    train = dataclasses.replace(config.train, steps=4, eval_every=4, save_every=4)
    return dataclasses.replace(config, train=train, **changes)


def stopped(config):
    """The dump of a run that stops."""
    with pytest.raises(RunError, match="for bert-jax replay"):
        pretrain(config)
    (facts,) = (epath.Path(config.run) / "anomalies").glob("*/anomaly.json")
    return facts.parent


def spoil_inputs(monkeypatch, row=5):
    """Let every batch but the first, which is checked, have a token that the vocabulary lacks."""
    original, batches = pipeline.assemble, []

    def assemble(*arguments):
        batch = original(*arguments)
        batches.append(batch)
        if len(batches) > 1:
            batch["input_ids"][row, 0] = 10_000
        return batch

    monkeypatch.setattr(pipeline, "assemble", assemble)


def spoil_parameter(monkeypatch, layer, *path):
    """Let runs start with a parameter of a layer that is not finite."""
    original = step.init_state

    def init_state(*arguments):
        state = original(*arguments)

        def spoil(keys, leaf):
            names = tuple(key.key for key in keys)
            return leaf.at[(layer, *(0,) * (leaf.ndim - 1))].set(jnp.inf) if names[-len(path) :] == path else leaf

        return state._replace(params=jax.tree_util.tree_map_with_path(spoil, state.params))

    monkeypatch.setattr(step, "init_state", init_state)


def spoil_gradient(monkeypatch, layer):
    """Let the loss have a gradient with respect to one layer that is not finite."""
    original = losses.pretraining

    def pretraining(config, params, batch, *, key=None):
        bert = params["bert"]
        kernel = bert["layers"]["attention"]["output"]["kernel"]
        nan = jnp.zeros_like(kernel).at[(layer, *(0,) * (kernel.ndim - 1))].set(jnp.nan)
        attention = bert["layers"]["attention"]
        attention = attention | {"output": attention["output"] | {"kernel": with_gradient(kernel, nan)}}
        spoiled = params | {"bert": bert | {"layers": bert["layers"] | {"attention": attention}}}
        return original(config, spoiled, batch, key=key)

    monkeypatch.setattr(losses, "pretraining", pretraining)


@pytest.mark.parametrize("accumulate", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_bad_token_is_found_and_the_step_has_the_same_bits(run_config, monkeypatch, quick, accumulate):
    config = short(run_config, optim=dataclasses.replace(run_config.optim, accumulate=accumulate))
    with monkeypatch.context() as patch:
        spoil_inputs(patch)
        dump = stopped(config)
    found = replay(dump)
    assert (found.step, found.devices, found.accumulate, found.reason) == (2, 1, accumulate, "loss is nan")
    assert found.bit_equal
    assert found.happens_again
    assert found.inputs == (f"input_ids of row 5 has 10000, but model.vocab_size is {config.model.vocab_size}",)
    assert found.parameters == ()
    assert found.output == layers.NotFinite("embeddings", (5,))
    # The encoder's parameters are those of all rows.
    assert "bert/layers/0/attention/query/kernel" in found.gradients


@pytest.mark.parametrize(
    ("layer", "path", "part"),
    [
        (1, ("attention", "value", "kernel"), "layers/1/attention/output"),
        pytest.param(2, ("ffn", "inner", "bias"), "layers/2/ffn/inner", marks=pytest.mark.slow),
        pytest.param(0, ("ffn", "norm", "scale"), "layers/0/ffn/norm", marks=pytest.mark.slow),
    ],
)
def test_the_layer_of_a_bad_parameter_is_named(run_config, monkeypatch, quick, layer, path, part):
    config = short(run_config)
    with monkeypatch.context() as patch:
        spoil_parameter(patch, layer, *path)
        dump = stopped(config)
    found = replay(dump)
    assert found.bit_equal
    assert found.parameters == (f"params/bert/layers/{layer}/{'/'.join(path)}",)
    assert found.inputs == ()
    assert found.output is not None
    assert (found.output.part, len(found.output.rows)) == (part, config.data.batch_size)


def test_the_layer_of_a_bad_gradient_is_named(run_config, monkeypatch, quick):
    spoil_gradient(monkeypatch, 1)
    dump = stopped(short(run_config))
    found = replay(dump)
    assert found.reason == "grad_norm is nan"
    assert found.bit_equal
    assert np.isfinite(found.replayed["loss"])
    assert found.output is None
    assert found.gradients == ("bert/layers/1/attention/output/kernel",)


@pytest.mark.slow
def test_a_step_of_eight_devices_is_replayed_up_to_rounding(run_config, monkeypatch):
    with quickly_compiled():
        spoil_gradient(monkeypatch, 2)
        found = replay(dump := stopped(short(run_config)))
        assert (found.devices, found.accumulate) == (8, 8)
        assert found.happens_again
        np.testing.assert_allclose(found.replayed["loss"], found.recorded["loss"], rtol=1e-6)
        assert found.gradients == ("bert/layers/2/attention/output/kernel",)
        out = here("replay", dump, "--accumulate", 3)
    assert (out.returncode, out.stderr) == (
        2,
        "bert-jax: The batch has 16 rows, which 3 micro-batches do not divide; use --accumulate N.\n",
    )


EXPERIMENT = """
import bert_jax
def rate(step):
    return {start} - step / 100
def config():
    return bert_jax.Config("none", bert_jax.DataConfig("none"), mask=bert_jax.MaskPolicy(rate=rate))
"""


def test_functions_of_a_policy_come_from_the_experiment(run_config, monkeypatch, tmp_path, quick):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.format(start=0.3))
    with monkeypatch.context() as patch:
        spoil_inputs(patch)
        dump = stopped(short(run_config, mask=load_experiment(path).mask))
    out = here("replay", dump)
    assert out.returncode == 2
    assert "has functions or token weights, which a dump does not contain; name the run's experiment" in out.stderr
    out = here("replay", dump, "--experiment", path, "--json")
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout)["bit_equal"]
    path.write_text(EXPERIMENT.format(start=0.2))
    out = here("replay", dump, "--experiment", path)
    assert (out.returncode, "The mask policy is not that of" in out.stderr) == (2, True)


def test_the_command_reports(run_config, monkeypatch, quick, tmp_path):
    with monkeypatch.context() as patch:
        spoil_inputs(patch)
        dump = stopped(short(run_config))
    out = here("replay", dump)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert lines[0] == f"{dump}: loss is nan at step 2, on 1 device"
    assert "  replay      the same bits as in the run" in lines
    assert "  parameters  all finite" in lines
    assert "  outputs     first not finite: embeddings, in row 5" in lines
    stored = json.loads(here("replay", dump, "--json").stdout, parse_constant=pytest.fail)
    assert (stored["bit_equal"], stored["output"]) == (True, {"part": "embeddings", "rows": [5]})
    assert stored["recorded"]["loss"] == stored["replayed"]["loss"] == "nan"
    # Nothing that a replay reads is changed.
    assert here("replay", dump.parent.parent).stderr.endswith(f"at an anomaly; there are {dump}.\n")
    (dump / "anomaly.json").unlink()
    assert "is not a finished dump" in here("replay", dump).stderr


def test_dumps_that_are_missing_or_damaged_are_one_sentence(run_config, monkeypatch, quick, tmp_path):
    with monkeypatch.context() as patch:
        spoil_inputs(patch)
        dump = stopped(short(run_config))
    with pytest.raises(UserError, match=r"does not exist; name a directory that a run wrote at an anomaly, such as"):
        replay(tmp_path / "none" / "anomalies" / "step-1")
    facts = json.loads((dump / "anomaly.json").read_text())
    (dump / "anomaly.json").write_text(json.dumps(facts | {"metrics": None}))
    with pytest.raises(RunError, match="is damaged"):
        replay(dump)
    (dump / "anomaly.json").write_text(json.dumps(facts | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        replay(dump)
    (dump / "anomaly.json").write_text(json.dumps(facts))
    shutil.rmtree(dump / "checkpoints")
    with pytest.raises(RunError, match="has lost its arrays"):
        replay(dump)
