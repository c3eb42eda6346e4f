"""Files that do not match the model: what is read of them, and what is said."""

from __future__ import annotations

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import tokenizers
from bert_jax.convert import hf, names
from bert_jax.errors import BertWarning, UserError
from bert_jax.inference.bert import Bert
from bert_jax.models.heads import init_params
from tests.conftest import MODEL
from tests.convert.test_convert import stored

FAMILIES = ("hf", "google", "flax")
FILES = {"hf": "config.json", "google": "bert_config.json", "flax": "config.json"}
QUERY = ("bert", "layers", "attention", "query", "kernel")


@pytest.fixture(scope="module")
def bert():
    tokenizer = tokenizers.train(lambda: ["alpha bravo charlie delta"] * 9, kind="wordpiece", size=40)
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens), initializer_range=0.3, layers="unroll")
    params = init_params(config, jax.random.key(0), heads={"mlm": 0, "sequence_classification": 3})
    return Bert(config, jax.tree.map(lambda x: x + 0.01, params), tokenizer, ("a", "b", "c"))


@pytest.fixture(params=FAMILIES)
def saved(request, bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to=request.param)
    return request.param, tmp_path / "model"


def describe(directory, family, **changes):
    path = directory / FILES[family]
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def caught(load):
    """What a function returns, and the sentences of its warnings."""
    with warnings.catch_warnings(record=True) as sentences:
        warnings.simplefilter("always")
        result = load()
    return result, [str(sentence.message) for sentence in sentences if sentence.category is BertWarning]


def at(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


def assert_equal(result, expected):
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_partial_keeps_the_layers_that_are_there(saved, bert):
    family, directory = saved
    tensors, write = stored(family, directory)
    entry = next(names.entries(family, ["bert/layers/attention/query/kernel"], 3))
    write({name: value for name, value in tensors.items() if name not in (entry.names[0], entry.names[2])})
    loaded, sentences = caught(lambda: bert_jax.load(directory, partial=True))
    assert len(sentences) == 1
    assert sentences[0].endswith("left at their initial values: bert/layers/attention/query/kernel of layers 0, 2.")
    query, expected = at(loaded.params, QUERY), at(bert.params, QUERY)
    np.testing.assert_array_equal(query[1], expected[1])
    assert not np.allclose(query[0], expected[0])
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        where = tuple(key.key for key in path)
        if where != QUERY:
            np.testing.assert_array_equal(leaf, at(bert.params, where))


def test_a_misshaped_tensor_leaves_its_own_layer_alone(saved, bert):
    family, directory = saved
    tensors, write = stored(family, directory)
    entry = next(names.entries(family, ["bert/layers/ffn/inner/bias"], 3))
    write(tensors | {entry.names[1]: np.ones(7, np.float32)})
    loaded, sentences = caught(lambda: bert_jax.load(directory, partial=True))
    assert any(f"{entry.names[1]} has shape (7,), but the config requires (64,)" in sentence for sentence in sentences)
    assert any("bert/layers/ffn/inner/bias of layer 1." in sentence for sentence in sentences)
    bias, expected = (at(tree, ("bert", "layers", "ffn", "inner", "bias")) for tree in (loaded.params, bert.params))
    np.testing.assert_array_equal(bias[[0, 2]], expected[[0, 2]])
    np.testing.assert_array_equal(bias[1], 0)


def test_more_layers_than_the_file_and_fewer(saved, bert):
    family, directory = saved
    describe(directory, family, num_hidden_layers=5)
    loaded, sentences = caught(lambda: bert_jax.load(directory, partial=True))
    assert [sentence.split(": ", 1)[1] for sentence in sentences] == [
        "left at their initial values: every parameter of layers 3-4."
    ]
    assert_equal(jax.tree.map(lambda leaf: leaf[:3], loaded.params["bert"]["layers"]), bert.params["bert"]["layers"])
    describe(directory, family, num_hidden_layers=1)
    loaded, sentences = caught(lambda: bert_jax.load(directory, partial=True))
    joint = {"hf": ".encoder.layer.", "google": "/encoder/layer_", "flax": "/encoder/layer/"}[family]
    assert [sentence.split(": ", 1)[1] for sentence in sentences] == [f"left out: all of bert{joint}1-2."]
    assert_equal(loaded.params["bert"]["layers"], jax.tree.map(lambda leaf: leaf[:1], bert.params["bert"]["layers"]))


def test_less_than_half_of_the_encoder_is_refused_even_partially(saved):
    family, directory = saved
    tensors, write = stored(family, directory)
    joint = "." if family == "hf" else "/"
    write({name.replace("attention", "attn").replace("intermediate", "mlp"): value for name, value in tensors.items()})
    for partial in (False, True):
        with pytest.raises(UserError, match=rf"even for --partial: the nearest name to bert.*attention.* is .*attn{joint}"):
            bert_jax.load(directory, partial=partial)
    write(
        {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float32)}
        | {f"x{n}": np.ones(2, np.float32) for n in range(9)}
    )
    with pytest.raises(UserError, match=r"has 0 of the \d+ tensors of the encoder"):
        bert_jax.load(directory, partial=True)
    write(tensors)
    describe(directory, family, hidden_size=64)
    with pytest.raises(
        UserError, match=r"too few even for --partial: .*position_embeddings.* has shape \(64, 32\), but the config"
    ):
        bert_jax.load(directory, partial=True)
    describe(directory, family, hidden_size=32, num_hidden_layers=12)
    with pytest.raises(UserError, match=r"even for --partial: the file does not have layers 3-11; correct num_hidden_layers"):
        bert_jax.load(directory, partial=True)


@pytest.mark.parametrize(
    ("prefix", "bare"),
    [
        ("module.", False),
        ("_orig_mod.", False),
        ("model.", False),
        ("module._orig_mod.", False),
        ("student.bert.", True),
        ("0.auto_model.", True),
        ("bert_model.", True),
        ("anything.at.all.", False),
        ("bert.", False),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_common_prefix_is_removed_and_said(bert, tmp_path, family, prefix, bare):
    bert_jax.save(bert, tmp_path / "model", to=family)
    tensors, write = stored(family, tmp_path / "model")
    joint = "." if family == "hf" else "/"
    prefix = prefix.replace(".", joint)
    renamed = {}
    for name, value in tensors.items():
        # A wrapped encoder has lost "bert"; heads then stand beside it, under their own names.
        inner = name.removeprefix(f"bert{joint}")
        renamed[(prefix + (inner if bare else name)) if not bare or inner != name else name] = value
    write(renamed)
    loaded, sentences = caught(lambda: bert_jax.load(tmp_path / "model"))
    assert_equal(loaded.params, bert.params)
    said = prefix.removesuffix(f"bert{joint}") if bare else prefix
    assert [sentence.split(": ", 1)[1] for sentence in sentences] == [f"read without the prefix {said} of its names."]


@pytest.mark.parametrize("pair", [("teacher.", "student."), ("query_encoder.bert.", "ctx_encoder.bert."), ("a.b.", "a.c.")])
def test_two_encoders_are_refused_by_name(saved, pair):
    family, directory = saved
    tensors, write = stored(family, directory)
    joint = "." if family == "hf" else "/"
    inner = {name.removeprefix(f"bert{joint}"): value for name, value in tensors.items() if name.startswith("bert")}
    first, second = (prefix.replace(".", joint) for prefix in sorted(pair))
    write({prefix + name: value for prefix in (first, second) for name, value in inner.items()})
    for partial in (False, True):
        with pytest.raises(UserError, match=f"contains several encoders, {first} and {second}; save the tensors of the one"):
            bert_jax.load(directory, partial=partial)


def test_a_second_encoder_beside_the_standard_names_is_left_out(bert, tmp_path):
    """transformers reads "bert." and ignores the rest; a relative of BERT under its own name is no BERT."""
    bert_jax.save(bert, tmp_path / "model", to="hf")
    tensors, write = stored("hf", tmp_path / "model")
    write(tensors | {f"teacher.{name}": value + 1 for name, value in tensors.items()})
    with pytest.warns(BertWarning, match="teacher.* belong to no head of BERT and were not read"):
        loaded = bert_jax.load(tmp_path / "model")
    assert_equal(loaded.params, bert.params)
    write({name.replace("bert.", "roberta."): value for name, value in tensors.items()})
    with pytest.raises(UserError, match="contains tensors of roberta, another architecture; only BERT can be read"):
        bert_jax.load(tmp_path / "model")


PROBLEMS = {
    "a shape": ("mlm", {"cls.predictions.bias": np.ones(3, np.float32)}, r"bias has shape \(3,\), but the config requires"),
    "a missing tensor": ("mlm", {"cls.predictions.transform.dense.bias": None}, "it lacks cls.predictions.transform.dense.bias"),
    "a further tensor": ("mlm", {"cls.predictions.projection.weight": np.ones(3, np.float32)}, "it has cls.predictions.projection"),
    "numbers": ("sequence_classification", {"classifier.bias": np.ones(3, np.int64)}, "classifier.bias has dtype int64"),
    "no numbers": ("sequence_classification", {"classifier.bias": np.full(3, np.nan, np.float32)}, "are not finite"),
    "two layers": (
        "sequence_classification",
        {"classifier.weight": None, "classifier.bias": None, "classifier.0.weight": np.ones((3, 3), np.float32)},
        "it has classifier.0.weight, which a head of BERT does not have",
    ),
    "another span": (
        "question_answering",
        {"qa_outputs.weight": np.ones((5, 32), np.float32)},
        r"qa_outputs.weight has shape \(5, 32\)",
    ),
    "a second span": ("qa_outputs2", {"qa_outputs2.weight": np.ones((2, 32), np.float32)}, "qa_outputs2.weight belong to no head"),
    "a CRF": (
        "crf",
        {"crf.transitions": np.ones((3, 3), np.float32)},
        "crf.transitions belong to no head of BERT",
    ),
    "another decoder": ("lm_head", {"lm_head.weight": np.ones((9, 32), np.float32)}, "lm_head.weight belong to no head"),
    "a count": ("metrics", {"metrics.total": np.ones((), np.int64)}, "metrics.total belong to no head"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_head_that_cannot_be_read_does_not_block_the_encoder(bert, tmp_path, case):
    head, changes, reason = PROBLEMS[case]
    bert_jax.save(bert, tmp_path / "model", to="hf")
    tensors, write = stored("hf", tmp_path / "model")
    write({name: value for name, value in (tensors | changes).items() if value is not None})
    loaded, sentences = caught(lambda: bert_jax.load(tmp_path / "model"))
    assert len(sentences) == 1
    assert [*loaded.problems] == [head]
    assert loaded.problems[head] == sentences[0]
    assert_equal(loaded.params, {name: value for name, value in bert.params.items() if name != head})
    np.testing.assert_array_equal(loaded.embed(["alpha bravo"]), bert.embed(["alpha bravo"]))
    with pytest.raises(UserError, match=reason):
        loaded.check(head)
    with pytest.raises(UserError, match=f"{reason}.*; --partial .* writes the model without what was not read"):
        bert_jax.save(loaded, tmp_path / "again", to="hf")
    bert_jax.save(loaded, tmp_path / "again", to="hf", partial=True)
    assert_equal(bert_jax.load(tmp_path / "again").params, loaded.params)


def test_the_method_that_needs_a_head_says_what_is_wrong(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    tensors, write = stored("hf", tmp_path / "model")
    write(
        {name: value for name, value in tensors.items() if not name.startswith("cls.")} | {"lm_head.bias": np.ones(3, np.float32)}
    )
    loaded, _ = caught(lambda: bert_jax.load(tmp_path / "model"))
    for method in (lambda: loaded.fill_mask("a [MASK]"), lambda: loaded.pseudo_log_likelihood(["alpha"])):
        with pytest.raises(UserError, match=r"no mlm head; it has sequence_classification; .*lm_head.bias belong to no head"):
            method()
    del tensors["classifier.bias"]
    write(tensors)
    with pytest.warns(BertWarning), pytest.raises(UserError, match=r"head was not read: it lacks classifier.bias"):
        bert_jax.Predictor.load(tmp_path / "model", task="classify")


@pytest.mark.parametrize(
    ("id2label", "sentence"),
    [
        ({"0": "no", "1": "yes"}, "has 2 labels in id2label, but the model's classifier has 3 outputs"),
        ({"0": "no", "1": "yes", "3": "?"}, "has 3 labels"),
        (["no", "yes", "?"], "has id2label .*; it must map the numbers of outputs to names"),
    ],
)
def test_labels_that_do_not_match_the_outputs(bert, tmp_path, id2label, sentence):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    describe(tmp_path / "model", "hf", id2label=id2label)
    with pytest.warns(BertWarning, match=sentence):
        loaded = bert_jax.load(tmp_path / "model")
    assert loaded.labels == ()
    assert_equal(loaded.params, bert.params)
    with pytest.warns(BertWarning), pytest.raises(UserError, match=sentence):
        bert_jax.Predictor.load(tmp_path / "model", task="classify")
    with pytest.warns(BertWarning):
        assert bert_jax.Predictor.load(tmp_path / "model", task="classify", labels=("x", "y", "z")).bert.labels == ("x", "y", "z")
    with pytest.raises(UserError, match=sentence):
        bert_jax.save(loaded, tmp_path / "again", to="hf")


def test_a_pooled_head_without_a_pooler(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    tensors, write = stored("hf", tmp_path / "model")
    write({name: value for name, value in tensors.items() if "pooler" not in name})
    with pytest.warns(BertWarning, match="sequence_classification head was not read: it needs the pooler, which the file does not"):
        assert [*bert_jax.load(tmp_path / "model").params["bert"]] == ["embeddings", "layers"]


@pytest.mark.parametrize(
    ("problem_type", "outputs"),
    [
        ("single_label_classification", 1),
        ("multi_label_classification", 1),
        ("multi_label_classification", 3),
        ("regression", 3),
        ("regression", 1),
    ],
)
def test_the_problem_type_is_kept(bert, tmp_path, problem_type, outputs):
    """A task of another kind does not read the outputs in its own way."""
    head = {"single": "sequence_classification", "multi": "multilabel_classification", "regression": "regression"}
    head = head[problem_type.partition("_")[0]]
    model = dataclasses.replace(bert, params=init_params(bert.config, jax.random.key(0), heads={head: outputs}), labels=())
    for source, target in (("one", "two"), ("two", "three")):
        if source == "one":
            bert_jax.save(model, tmp_path / source, to="hf")
        loaded = bert_jax.load(tmp_path / source)
        assert [*loaded.params] == ["bert", head]
        bert_jax.save(loaded, tmp_path / target, to="hf")
        assert json.loads((tmp_path / target / "config.json").read_text())["problem_type"] == problem_type
    task = "classify" if head != "sequence_classification" else "multilabel"
    with pytest.raises(UserError, match=f"its classifier is a {head} head, not"):
        bert_jax.Predictor.load(tmp_path / "one", task=task)


def test_unreadable_problem_types_are_not_guessed(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    describe(tmp_path / "model", "hf", problem_type="multi-label")
    with pytest.warns(BertWarning, match="the classifier was not read"):
        loaded = bert_jax.load(tmp_path / "model")
    assert [*loaded.params] == ["bert", "mlm"]
    assert "multilabel_classification" in bert_jax.load(tmp_path / "model", head="multilabel_classification").params
    assert hf.classifier({"problem_type": "regression"}, 1, None, "x") == "regression"
