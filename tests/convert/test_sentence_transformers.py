"""Directories of sentence-transformers give its vectors, and exports give them to it."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sentence_transformers
    from sentence_transformers.sentence_transformer import modules

import bert_jax
from bert_jax.errors import BertWarning, UserError

WORDS = ("a", "man", "is", "eating", "food", "weather", "cold", "paris", "query", ":", ".", ",", "##s", "é")
VOCAB = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
TEXTS = ["a man is eating food.", "", "Weathers", "paris " * 30, "query: é cold, cold", "zzz a"]
WIDTH = 24
HEADS = {
    "cls": [modules.Pooling(WIDTH, "cls")],
    "mean": [modules.Pooling(WIDTH, "mean"), modules.Normalize()],
    "max": [modules.Pooling(WIDTH, "max")],
    "sqrt": [modules.Pooling(WIDTH, "mean_sqrt_len_tokens")],
    "weightedmean": [modules.Pooling(WIDTH, "weightedmean")],
    "lasttoken": [modules.Pooling(WIDTH, "lasttoken"), modules.LayerNorm(WIDTH)],
    "several": [modules.Pooling(WIDTH, ("max", "cls")), modules.Dense(2 * WIDTH, 7), modules.Normalize()],
    "dense": [modules.Pooling(WIDTH, "mean"), modules.Dense(WIDTH, 8, activation_function=torch.nn.GELU())],
    "no bias": [modules.Pooling(WIDTH, "mean"), modules.Dense(WIDTH, 8, bias=False, activation_function=torch.nn.Identity())],
    "residual": [modules.Pooling(WIDTH, "mean"), modules.Dense(WIDTH, WIDTH, use_residual=True), modules.Dropout(0.5)],
}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A directory of transformers with a small uncased model, whose texts have at most 64 tokens."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("transformer")
    shape = dict(vocab_size=len(VOCAB), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = transformers.BertModel(transformers.BertConfig(**shape, max_position_embeddings=64))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    transformers.BertTokenizer.from_pretrained(path).save_pretrained(path)
    return path


def save(path, transformer, head, *, length=16, lowercase=False, **options):
    """Write a directory of sentence-transformers and return the model."""
    first = modules.Transformer(str(transformer), max_seq_length=length, do_lower_case=lowercase)
    model = sentence_transformers.SentenceTransformer(modules=[first, *head], device="cpu", **options)
    model.save(str(path), create_model_card=False)
    return reference(path)


def reference(path):
    return sentence_transformers.SentenceTransformer(str(path), device="cpu")


def assert_equal(bert, model, texts=TEXTS, **options):
    np.testing.assert_allclose(bert.embed(texts, **options), model.encode(texts, **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_vectors_equal_those_of_sentence_transformers(tmp_path, transformer, name):
    torch.manual_seed(2)
    model = save(tmp_path / "model", transformer, HEADS[name])
    bert = bert_jax.load(tmp_path / "model")
    assert_equal(bert, model)
    bert_jax.save(bert, tmp_path / "exported", to="hf")
    assert_equal(bert, reference(tmp_path / "exported"))
    bert_jax.save(bert, tmp_path / "orbax", to="orbax")
    np.testing.assert_array_equal(bert_jax.load(tmp_path / "orbax").embed(TEXTS), bert.embed(TEXTS))


def test_prompts(tmp_path, transformer):
    prompts = {"query": "query: ", "document": ""}
    for include in (True, False):
        path = tmp_path / str(include)
        head = [modules.Pooling(WIDTH, ("mean", "max", "cls"), include_prompt=include)]
        model = save(path, transformer, head, prompts=prompts, default_prompt_name="query")
        bert = bert_jax.load(path)
        assert_equal(bert, model)
        assert_equal(bert, model, prompt_name="document")
        assert_equal(bert, model, prompt="Paris é ")
        bert_jax.save(bert, path / "exported", to="hf")
        assert_equal(bert, reference(path / "exported"))
    with pytest.raises(UserError, match="no prompt 'other'; it has 'document', 'query'"):
        bert.embed(TEXTS, prompt_name="other")
    with pytest.raises(UserError, match="prompt or prompt_name, not both"):
        bert.embed(TEXTS, prompt="a", prompt_name="query")


def test_arguments_override_the_files(tmp_path, transformer):
    model = save(tmp_path / "model", transformer, HEADS["mean"])
    bert = bert_jax.load(tmp_path / "model")
    plain = bert_jax.load(transformer)
    np.testing.assert_allclose(
        bert.embed(TEXTS, pooling="max", normalize=False), plain.embed(TEXTS, pooling="max", long="truncate", sequence_length=16),
        atol=1e-6,
    )  # fmt: skip
    model.max_seq_length = 64
    assert_equal(bert, model, TEXTS[:3])
    np.testing.assert_allclose(bert.embed(TEXTS, sequence_length=64), model.encode(TEXTS), atol=1e-5)
    with pytest.raises(UserError, match="32 tokens"):
        bert.embed(TEXTS, long="error", sequence_length=16)


def test_a_cased_vocabulary_in_lower_case(tmp_path, transformer):
    cased = tmp_path / "cased"
    shutil.copytree(transformer, cased, ignore=shutil.ignore_patterns("token*"))
    (cased / "vocab.txt").write_text("\n".join(VOCAB).replace("weather", "Weather"), encoding="utf-8")
    transformers.BertTokenizer.from_pretrained(cased, do_lower_case=False).save_pretrained(cased)
    model = save(tmp_path / "model", cased, HEADS["cls"], lowercase=True)
    assert_equal(bert_jax.load(tmp_path / "model"), model, [*TEXTS, "A Man Paris É"])


def test_the_layout_of_the_first_versions(tmp_path, transformer):
    model = save(tmp_path / "new", transformer, HEADS["max"])
    old = tmp_path / "old"
    shutil.copytree(transformer, old / "0_BERT")
    (old / "1_Pooling").mkdir()
    booleans = {"word_embedding_dimension": WIDTH, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}
    (old / "1_Pooling" / "config.json").write_text(json.dumps(booleans | {"pooling_mode_cls_token": False}))
    (old / "0_BERT" / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    entries = [("0_BERT", "BERT"), ("1_Pooling", "Pooling")]
    stored = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(entries)
    ]
    (old / "modules.json").write_text(json.dumps(stored))
    assert_equal(bert_jax.load(old), model)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.CNN", "path": ""}], "starts with the module"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, 'pooling_mode "median"; choose from mean, cls'),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": "yes"}, "pooling_mode_cls_token is 'yes'; it must be bool"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Softmax"}, "'torch.nn.Softmax', which cannot be computed"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length is 'long'"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder, which gives no sentence embeddings"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name is 'q', which is not among"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, transformer, file, content, sentence):
    save(tmp_path / "model", transformer, HEADS["dense"])
    (tmp_path / "model" / file).write_text(json.dumps(content))
    if file == "modules.json":
        with pytest.raises(UserError, match=sentence):
            bert_jax.load(tmp_path / "model")
        return
    with pytest.warns(BertWarning, match=sentence):
        bert = bert_jax.load(tmp_path / "model")
    assert bert.encode(["a man"]).hidden.shape == (1, 4, WIDTH)
    assert bert.embed(["a man"], pooling="cls").shape == (1, WIDTH)
    with pytest.raises(UserError, match=sentence):
        bert.embed(["a man"])
