"""Configs refuse invalid values in one sentence, and are unchanged by a round trip through JSON."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from bert_jax.config.data import DataConfig
from bert_jax.config.format import KEY, VERSION
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import SIZES, ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import FREE_ON_RESUME, Config, MaskPolicy
from bert_jax.config.training import TrainConfig
from bert_jax.config.validation import differences
from bert_jax.convert.hf import read_config
from bert_jax.errors import UserError
from bert_jax.models import heads

CONFIG = Config(run="r", data=DataConfig("c"), mask=MaskPolicy(select="word", max_predictions=20))


def test_json_round_trip():
    assert Config.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(("size", "encoder", "whole"), [("base", 109_482_240, 110_106_428), ("large", 335_141_888, 336_226_108)])
def test_parameter_counts_are_the_published_ones(size, encoder, whole):
    shapes = jax.eval_shape(lambda: heads.init_params(ModelConfig.size(size), jax.random.key(0)))

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert count(shapes["bert"]) == encoder
    assert count(shapes) == whole


def test_sizes_are_the_published_ones():
    tiny, large = ModelConfig.size("tiny"), ModelConfig.size("large", vocab_size=100)
    assert (tiny.num_hidden_layers, tiny.hidden_size, tiny.intermediate_size, tiny.head_size) == (2, 128, 512, 64)
    assert (large.num_hidden_layers, large.hidden_size, large.num_attention_heads, large.vocab_size) == (
        24,
        1024,
        16,
        100,
    )
    assert all(ModelConfig.size(name).head_size == 64 for name in SIZES)
    with pytest.raises(UserError, match="no model size 'huge'"):
        ModelConfig.size("huge")


def test_reads_the_original_config_file_as_it_is(tmp_path):
    path = tmp_path / "bert_config.json"
    path.write_text(
        json.dumps(
            {
                "attention_probs_dropout_prob": 0.1,
                "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1,
                "hidden_size": 1024,
                "initializer_range": 0.02,
                "intermediate_size": 4096,
                "max_position_embeddings": 512,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "type_vocab_size": 2,
                "vocab_size": 30522,
            }
        )
    )
    assert read_config(path) == ModelConfig.size("large")


def test_reads_later_names_and_ignores_other_fields(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        '{"model_type": "bert", "hidden_act": "gelu_new", "position_embedding_type": "absolute",'
        ' "num_attention_heads": 12, "layer_norm_eps": 1e-5, "architectures": ["BertModel"], "dtype": "float16"}'
    )
    config = read_config(path)
    assert (config.hidden_act, config.position_embedding_type, config.layer_norm_eps, config.dtype) == (
        "gelu_tanh",
        "learned",
        1e-5,
        "float32",
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"model_type": "roberta"}', "'roberta' model"),
        ("not json", "is not JSON"),
        ('{"num_attention_heads": 12, "hidden_size": "768"}', "hidden_size is '768'; it must be int"),
        ('{"num_attention_heads": 12, "hidden_dropout_prob": true}', "hidden_dropout_prob is True; it must be float"),
        ("[1]", "contains a list"),
        ("{}", "has no num_attention_heads"),
    ],
)
def test_bad_config_files(tmp_path, content, sentence):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_config(path)


def test_missing_config_file(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_config(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a directory"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ModelConfig(hidden_size=100), "not divisible by model.num_attention_heads 12"),
        (lambda: ModelConfig(hidden_dropout_prob=-0.1), "hidden_dropout_prob is -0.1"),
        (lambda: ModelConfig(hidden_dropout_prob=1.0), "below 1"),
        (lambda: ModelConfig(vocab_size=0), "vocab_size is 0"),
        (lambda: ModelConfig(classifier_dropout=1.0), "classifier_dropout is 1.0"),
        (lambda: ModelConfig(lstm_layers=-1), "lstm_layers is -1"),
        (lambda: ModelConfig(states="sum_all"), "model.states is sum_all, which needs a BiLSTM"),
        (lambda: ModelConfig(hidden_size=15, num_attention_heads=1, lstm_layers=1), "hidden_size 15 is odd"),
        (lambda: MaskPolicy(rate=1.5), "mask.rate is 1.5"),
        (lambda: MaskPolicy(replace=(0.8, 0.1, 0.2)), "sum to 1"),
        (lambda: MaskPolicy(replace=(1.2, -0.1, -0.1)), r"mask.replace\[0\] is 1.2; it must lie in \[0, 1\]"),
        (lambda: DataConfig("c", sequence_length=4), "at least 5"),
        (lambda: OptimConfig(b1=1.0), "optim.b1 is 1.0"),
        (lambda: OptimConfig(accumulate=0), "accumulate is 0"),
        (lambda: OptimConfig(layer_decay=0.0), r"layer_decay is 0.0; it must lie in \(0, 1\]"),
        (lambda: OptimConfig(layer_decay=1.1), "layer_decay is 1.1"),
        (lambda: OptimConfig(name="schedule_free", b1=0.0), "schedule_free, which needs a value above 0"),
        (lambda: MeshConfig(fsdp=0), "mesh.fsdp is 0"),
        (lambda: TrainConfig(steps=0), "steps is 0"),
        (lambda: TrainConfig(seed=-1), "seed is -1"),
        (
            lambda: dataclasses.replace(CONFIG, data=DataConfig("c", sequence_length=513)),
            "exceeds model.max_position_embeddings 512",
        ),
        (lambda: dataclasses.replace(CONFIG, model=ModelConfig(attention="splash")), "attention splash has no dropout"),
        (lambda: dataclasses.replace(CONFIG, train=TrainConfig(steps=10)), "leaves none of train.steps 10"),
        (lambda: dataclasses.replace(CONFIG, optim=OptimConfig(accumulate=3)), "not divisible by optim.accumulate 3"),
        (lambda: dataclasses.replace(CONFIG, parallel="pmap", mesh=MeshConfig(fsdp=2)), "use --parallel mesh"),
        (lambda: dataclasses.replace(CONFIG, model=ModelConfig(type_vocab_size=1)), "two token types"),
    ],
)
def test_errors_name_the_field(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize("select", ["token", "word"])
def test_causal_and_next_go_together(select):
    causal, other, follows = ModelConfig(causal=True), MaskPolicy(select=select), MaskPolicy(select="next")
    sentence = "causal models, and only these, are pretrained on the next token"
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(CONFIG, model=causal, mask=other)
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(CONFIG, model=ModelConfig(), mask=follows)
    both = dataclasses.replace(CONFIG, model=causal, mask=follows)
    assert Config.from_json(both.to_json()) == both
    assert differences(both, CONFIG, FREE_ON_RESUME) == [
        "model.causal: True -> False",
        "mask.select: next -> word",
        "mask.max_predictions: None -> 20",
    ]


def test_missing_fields_have_their_defaults():
    """Runs that were started before these fields existed can be resumed."""
    stored = json.loads(CONFIG.to_json())
    for section, names in {"model": ("causal", "states", "lstm_layers", "classifier_dropout"), "optim": ("layer_decay",)}.items():
        for name in names:
            del stored[section][name]
    assert Config.from_json(json.dumps(stored)) == CONFIG


def test_json_with_unknown_or_missing_fields():
    stored = json.loads(CONFIG.to_json())
    with pytest.raises(UserError, match="no field color"):
        Config.from_json(json.dumps(stored | {"color": 1}))
    version = f'"{KEY}": {VERSION}'
    for text in ("{", f'{{{version}, "run": "r", "data": []}}', f'{{{version}, "run": 3}}'):
        with pytest.raises(UserError, match=r"not JSON|must be a JSON object|must be str"):
            Config.from_json(text)
    del stored["data"]["corpus"]
    with pytest.raises(UserError, match=r"config.data is incomplete.*corpus"):
        Config.from_json(json.dumps(stored))


def test_differences_name_what_changes_a_run_and_only_that():
    other = dataclasses.replace(
        CONFIG,
        optim=OptimConfig(peak_lr=1.0),
        mesh=MeshConfig(fsdp=4),
        train=TrainConfig(keep=9),
        data=DataConfig("elsewhere"),
        model=ModelConfig(attention="reference"),
    )
    assert differences(CONFIG, other, FREE_ON_RESUME) == ["optim.peak_lr: 0.0001 -> 1.0"]
