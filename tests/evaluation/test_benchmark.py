"""The benchmark of a config: its arithmetic, its profile, the command."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from bert_jax import cli
from bert_jax.config.data import DataConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.evaluation import benchmark, profile
from bert_jax.evaluation.xplane import Event, read_trace
from bert_jax.masking.replacement import mask_tokens
from bert_jax.models.arithmetic import forward_flop
from bert_jax.models.heads import init_params
from bert_jax.training.losses import pretraining
from tests.conftest import MODEL, POLICY, VOCAB, with_policy

CONFIG = Config(
    run="",
    data=DataConfig("", sequence_length=32, batch_size=16),
    model=dataclasses.replace(MODEL, layers="unroll"),
    optim=OptimConfig(warmup_steps=2),
    train=TrainConfig(steps=10),
)


@pytest.mark.parametrize(
    ("size", "length", "predictions", "gflop"),
    # Devlin et al.'s shapes, by the formulas of NVIDIA's and Google's published throughputs: forward, one sequence.
    [("base", 128, 20, 21.74 + 0.60 + 0.96), ("large", 512, 76, 309.24 + 25.77 + 4.91)],
)
def test_flop_of_published_sizes(size, length, predictions, gflop):
    phases = forward_flop(ModelConfig.size(size), np.array([length]), predictions)
    assert sum(phases.values()) / 1e9 == pytest.approx(gflop, abs=0.02)


def test_flop_agree_with_the_count_of_xla():
    """XLA counts every operation of the forward pass; in a wide model, nearly all are in matrix products."""
    model = ModelConfig(vocab_size=512, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024)
    data = DataConfig("", sequence_length=64, batch_size=4)
    policy = with_policy(POLICY, vocab_size=512)
    batch = jax.jit(mask_tokens, static_argnums=2)(jax.random.key(0), benchmark.random_batch(data, 512), policy, 0)
    params = init_params(model, jax.random.key(0))
    counted = jax.jit(lambda params: pretraining(model, params, batch)).lower(params).compile().cost_analysis()["flops"]
    # All prediction slots of the program, used or not.
    expected = forward_flop(model, np.full(4, 64), batch["mlm_ids"].size)
    assert counted == pytest.approx(sum(expected.values()), rel=0.05)


@pytest.mark.parametrize("changes", [{}, {"rate": 0.4}, {"max_predictions": 5}, {"select": "next"}])
def test_predictions_are_counted_as_they_are_made(changes):
    data = DataConfig("", sequence_length=64, batch_size=4)
    policy = with_policy(POLICY, steps=10, **changes)
    batch = jax.jit(mask_tokens, static_argnums=2)(jax.random.key(0), benchmark.random_batch(data, VOCAB), policy, 0)
    assert benchmark.count_predictions(policy, np.full(4, 64)) == batch["mlm_weights"].sum()


def test_an_instant_is_divided_among_running_operations():
    nested = [Event(0.0, 10.0, "while"), Event(1.0, 4.0, "a"), Event(2.0, 3.0, "b"), Event(10.0, 12.0, "c")]
    assert profile.operation_times([nested]) == {"while": 7.0, "a": 2.0, "b": 1.0, "c": 2.0}
    assert profile.operation_times([[Event(5.0, 5.0, "a"), Event(5.0, 6.0, "b")]]) == {"b": 1.0}
    assert profile.operation_times([nested, [Event(3.0, 5.0, "d"), Event(20.0, 21.0, "d")]]) == {
        "while": 6.5,
        "a": 1.5,
        "b": 1.0,
        "c": 2.0,
        "d": 2.0,
    }


def test_traces_are_read_as_jax_writes_them(tmp_path):
    """XLA's own schema turns the text into bytes."""
    text = """planes {
      lines {
        timestamp_ns: 1000
        events { metadata_id: 7 offset_ps: 1500 duration_ps: 2000 stats { metadata_id: 3 str_value: "fusion.9" } }
        events { metadata_id: 7 offset_ps: 9000 stats { metadata_id: 4 str_value: "no operation" } }
      }
      lines { events { metadata_id: 8 duration_ps: 500 stats { metadata_id: 3 ref_value: 5 } } }
      event_metadata { key: 7 value { id: 7 name: "thunk" } }
      event_metadata { key: 8 value { id: 8 name: "other" } }
      stat_metadata { key: 3 value { id: 3 name: "hlo_op" } }
      stat_metadata { key: 4 value { id: 4 name: "hlo_module" } }
      stat_metadata { key: 5 value { id: 5 name: "dot.1" } }
    }"""
    path = tmp_path / "host.xplane.pb"
    path.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(text))
    assert read_trace(path) == [
        [Event(1001.5, 1003.5, "fusion.9"), Event(1009.0, 1009.0, "thunk")],
        [Event(0.0, 0.5, "dot.1")],
    ]


def test_scopes_and_phases_of_a_program():
    program = """HloModule jit_f
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2] parameter(0)
  ROOT %dot.1 = f32[2] dot(%p, %p), metadata={op_name="jit(f)/transpose(jvp(Encoder))/layers/attention/core/dot"}
}
ENTRY %main (a: f32[2]) -> f32[2] {
  %fusion.7 = f32[2] fusion(%a), kind=kOutput, calls=%fused
  ROOT %add.2 = f32[2] add(%fusion.7, %a), metadata={op_name="jit(f)/optimizer/layers/norm/add"}
}
"""
    scopes = profile.operation_scopes(program)
    assert {name: profile.phase_of(scopes[name]) for name in ("fusion.7", "add.2", "dot.1")} == {
        "fusion.7": "attention",
        "add.2": "optimizer",
        "dot.1": "attention",
    }
    assert profile.phase_of("jit(f)/transpose(jvp(mlm))/MlmTransform/dense/dot_general") == "head"
    assert profile.phase_of("jit(f)/layers/core/dropout/where") == "norms, dropout"
    assert profile.phase_of("") == profile.OTHER


@pytest.mark.slow
def test_the_profile_accounts_for_the_whole_step():
    # Large enough for arithmetic to outweigh waiting, also on a busy machine.
    model = dataclasses.replace(CONFIG.model, hidden_size=128, intermediate_size=512, max_position_embeddings=128)
    config = dataclasses.replace(CONFIG, model=model, data=DataConfig("", sequence_length=128, batch_size=32))
    report = benchmark.run(config, steps=3, profile=True)
    assert report.attention == "reference"
    assert report.tokens == 32 * 128
    assert len(report.seconds) == 3
    assert min(report.seconds) > 0
    assert report.first > min(report.seconds)
    assert report.peak > 0
    assert report.memory > 0
    phases = report.phases
    assert {"FFN", "QKV", "projection", "attention", "head", "loss", "optimizer", "masking", "embedding"} <= phases.keys()
    assert min(phases.values()) >= 0
    # Traced steps differ from measured ones, but their sums are of the same size.
    assert 0.3 * min(report.seconds) < sum(phases.values()) - phases[profile.IDLE] < 3 * max(report.seconds)
    named = sum(seconds for name, seconds in phases.items() if name not in (profile.OTHER, profile.IDLE))
    assert named > phases[profile.OTHER]


def test_the_command(capsys, tmp_path):
    path, out = tmp_path / "experiment.py", tmp_path / "bench.json"
    path.write_text(
        "import bert_jax\ndef config():\n"
        "    return bert_jax.Config(run='', data=bert_jax.DataConfig('', 32, 16), "
        "model=bert_jax.ModelConfig.size('tiny', num_hidden_layers=1))"
    )
    arguments = ["bench", str(path), "--steps", "2", "--profile", "--attention", "xla", "--out", str(out)]
    no_dropout = ["--model.attention-probs-dropout-prob", "0"]
    assert cli.main(arguments) == 2
    assert "attention xla has no dropout" in capsys.readouterr().err
    assert cli.main([*arguments, *no_dropout, "--mask.token-weights", "table.tsv"]) == 2
    assert "a file of token weights needs" in capsys.readouterr().err
    assert cli.main([*arguments, *no_dropout, "--mask.rate", "adaptive(0.3, 0.15, 6, 3)", "--mask.random-tokens", "ordinary"]) == 0
    printed = capsys.readouterr().out
    assert "attention xla" in printed
    assert "| FFN |" in printed
    assert len(json.loads(out.read_text())["seconds"]) == 2
    assert cli.main([*arguments, *no_dropout]) == 2
    assert "bench.json exists already" in capsys.readouterr().err
    assert cli.main(["bench", str(path), "--steps", "0"]) == 2
    assert "steps is 0" in capsys.readouterr().err
