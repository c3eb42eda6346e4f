"""Formats of weights: reading, writing, error messages, and nothing left behind by failures."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pickle
import struct
import warnings
import zipfile

import flax.serialization
import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

import bert_jax
from bert_jax.convert import google, hf, names, pickles, tree
from bert_jax.errors import BertWarning, UserError
from bert_jax.inference.bert import Bert
from bert_jax.models.heads import init_params
from tests.conftest import MODEL

HEADS = {"mlm": 0, "nsp": 2, "sequence_classification": 3, "question_answering": 2}


@pytest.fixture(scope="module")
def bert(tokenizer):
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens), initializer_range=0.3, layers="unroll")
    params = jax.tree.map(lambda x: x + 0.01, init_params(config, jax.random.key(0), heads=HEADS))
    return Bert(config, params, tokenizer, ("a", "b", "c"))


@pytest.fixture(params=["hf", "google", "flax"])
def saved(request, bert, tmp_path):
    """A family, and a directory in its format."""
    bert_jax.save(bert, tmp_path / "model", to=request.param)
    return request.param, tmp_path / "model"


def stored(family, directory):
    """Tensors of a directory, and a function that replaces them."""
    files = {"hf": "model.safetensors", "google": "bert_model.ckpt.index", "flax": "flax_model.msgpack"}
    path = epath.Path(directory / files[family])
    write = {"hf": hf.write_safetensors, "google": google.write, "flax": hf.write_msgpack}[family]
    read = google.read(path, lambda name: True) if family == "google" else hf.read(path)
    return dict(read), lambda tensors: write(path, tensors)


def test_the_table_has_every_parameter_once(bert):
    paths = tree._flatten(bert.params)
    for family in ("hf", "google", "flax"):
        entries = [*names.entries(family, paths, bert.config.num_hidden_layers)]
        assert {entry.ours for entry in entries} == set(paths)
        tensors = [name for entry in entries for name in entry.names]
        assert len(tensors) == len(set(tensors))
    with pytest.raises(KeyError):
        next(names.entries("hf", ["bert/unknown"], 1))


def test_layouts_of_a_query_and_an_output_kernel(bert):
    """[D, H, K] here, [D, H*K] in TensorFlow and Flax, its transpose in PyTorch; one matrix for each layer."""
    attention = bert.params["bert"]["layers"]["attention"]
    for family, name in {
        "google": "bert/encoder/layer_1/attention/{}/kernel",
        "flax": "bert/encoder/layer/1/attention/{}/kernel",
        "hf": "bert.encoder.layer.1.attention.{}.weight",
    }.items():
        tensors = tree.write(bert.params, bert.config, family)
        joint = "." if family == "hf" else "/"
        query, output = (tensors[name.format(f"{part[0]}{joint}{part[1]}")] for part in (("self", "query"), ("output", "dense")))
        turn = np.transpose if family == "hf" else np.asarray
        np.testing.assert_array_equal(turn(query), attention["query"]["kernel"][1].reshape(32, 32))
        np.testing.assert_array_equal(turn(output), attention["output"]["kernel"][1].reshape(32, 32))


def test_unprefixed_names_old_names_and_buffers(saved, bert):
    family, directory = saved
    tensors, write = stored(family, directory)
    joint = "." if family == "hf" else "/"
    tensors = {name.removeprefix(f"bert{joint}"): value for name, value in tensors.items()}
    if family == "hf":
        tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
                   for name, value in tensors.items()}  # fmt: skip
        tensors["embeddings.position_ids"] = np.arange(64)[None]
    if family == "google":
        tensors |= {f"{name}/{slot}": value for name, value in [*tensors.items()] for slot in ("adam_m", "adam_v")}
        tensors |= {"global_step": np.float32(7), "bert/pooler/dense/kernel/LAMBOptimizer_1": np.ones(3, np.float32)}
    else:
        # A decoder that is tied to the word embeddings, and its bias.
        word = tensors[f"embeddings{joint}word_embeddings{joint}{'weight' if family == 'hf' else 'embedding'}"]
        copy = {"hf": ("cls.predictions.decoder.weight", word), "flax": ("cls/predictions/decoder/kernel", word.T)}[family]
        tensors[copy[0]] = copy[1]
        tensors[f"cls{joint}predictions{joint}decoder{joint}bias"] = tensors.pop(f"cls{joint}predictions{joint}bias")
    write(tensors)
    jax.tree.map(np.testing.assert_array_equal, bert_jax.load(directory).params, bert.params)


def test_missing_unexpected_and_misshaped_tensors_are_named(saved, bert):
    family, directory = saved
    tensors, write = stored(family, directory)
    inner = next(name for name in tensors if "intermediate" in name and ("kernel" in name or "weight" in name) and "1" in name)
    write({name: value for name, value in tensors.items() if name != inner})
    with pytest.raises(UserError, match=f"lacks tensors: {inner}"):
        bert_jax.load(directory)
    with pytest.warns(BertWarning, match=r"left at their initial values: bert/layers/ffn/inner/kernel of layer 1\."):
        partial = bert_jax.load(directory, partial=True).params["bert"]
    np.testing.assert_array_equal(partial["pooler"]["kernel"], bert.params["bert"]["pooler"]["kernel"])
    assert np.asarray(partial["layers"]["ffn"]["inner"]["kernel"]).std() > 0

    write(tensors | {"bert.encoder.unknown" if family == "hf" else "bert/encoder/unknown": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"no place in this model: bert[./]encoder[./]unknown"):
        bert_jax.load(directory)
    with pytest.warns(BertWarning, match=r"left out: bert[./]encoder[./]unknown"):
        bert_jax.load(directory, partial=True)

    write(tensors | {inner: tensors[inner][:-1]})
    with pytest.raises(UserError, match=r"does not fit its config: .*intermediate.* has shape"):
        bert_jax.load(directory)


def test_a_vocabulary_that_differs_from_the_config(saved):
    family, directory = saved
    path = directory / ("bert_config.json" if family == "google" else "config.json")
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"vocab_size": 80}))
    with pytest.raises(UserError, match=r"word_embeddings.* has shape \(89, 32\), but the config requires \(80, 32\)"):
        bert_jax.load(directory)
    path.write_text(json.dumps(description))
    vocab = (directory / "vocab.txt").read_text()
    (directory / "vocab.txt").write_text(vocab + "more\n")
    if family != "google":
        with pytest.raises(UserError, match="have different tokens from id 89 on"):
            bert_jax.load(directory)
        (directory / "tokenizer.json").unlink()
    with pytest.warns(BertWarning, match="has 90 tokens, the word embeddings 89 rows"):
        bert = bert_jax.load(directory)
    with pytest.raises(UserError, match="'more' with the id 89, but the word embeddings have 89 rows"):
        bert.embed(["some more"])
    (directory / "vocab.txt").write_text("\n".join(vocab.split("\n")[:-2]) + "\n")
    with pytest.warns(BertWarning, match="has 88 tokens, the word embeddings 89 rows"):
        bert_jax.load(directory)


def test_contradictions_are_warnings(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    for name, changes, sentence in (
        ("config.json", {"pad_token_id": 3}, "the config has pad_token_id 3, but the vocabulary 0"),
        ("tokenizer_config.json", {"model_max_length": 100}, "allows 100 tokens, but the model has 64 positions"),
        ("tokenizer_config.json", {"do_lower_case": False}, "has do_lower_case false, which is not followed"),
    ):
        path = tmp_path / "model" / name
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | changes))
        with pytest.warns(BertWarning, match=sentence):
            bert_jax.load(tmp_path / "model")
        path.write_text(before)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 2**70}, "must be less than"),
        ({"num_hidden_layers": 10**8}, "too few for the 100000000 layers"),
        ({"model_type": "roberta"}, "describes a 'roberta' model; only BERT can be read"),
        ({"model_type": "distilbert"}, "describes a 'distilbert' model"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "silu"}, "silu"),
        ({"num_hidden_layers": 4}, "lacks tensors"),
        ({"num_hidden_layers": 2}, "no place in this model"),
    ],
)
def test_other_architectures_are_refused(bert, tmp_path, changes, sentence):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=sentence):
        bert_jax.load(tmp_path / "model")


def test_no_model_or_several(bert, tmp_path):
    with pytest.raises(UserError, match="There is no model"):
        bert_jax.load(tmp_path / "none")
    with pytest.raises(UserError, match="contains no model"):
        bert_jax.load(tmp_path)
    bert_jax.save(bert, tmp_path / "model", to="hf")
    bert_jax.save(bert, tmp_path / "flax", to="flax")
    both = tmp_path / "model" / "flax_model.msgpack"
    both.write_bytes((tmp_path / "flax" / "flax_model.msgpack").read_bytes())
    # As in transformers, safetensors come first.
    both.write_bytes(both.read_bytes()[:100])
    jax.tree.map(np.testing.assert_array_equal, bert_jax.load(tmp_path / "model").params, bert.params)
    both.write_bytes((tmp_path / "flax" / "flax_model.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, bert_jax.load(both).params, bert.params)
    with pytest.raises(UserError, match="is not a checkpoint; name a file with one of the suffixes"):
        bert_jax.load(tmp_path / "model" / "vocab.txt")
    bert_jax.save(bert, tmp_path / "orbax", to="orbax")
    (tmp_path / "orbax" / "model.safetensors").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"contains checkpoints and model.safetensors; name the one to read"):
        bert_jax.load(tmp_path / "orbax")
    jax.tree.map(np.testing.assert_array_equal, bert_jax.load(tmp_path / "orbax" / "checkpoints").params, bert.params)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json or bert_config.json"):
        bert_jax.load(both)


def test_checkpoints_have_the_names_that_tensorflow_gives_them(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="google")
    for name in ("bert_model.ckpt", "bert_model.ckpt.index"):
        jax.tree.map(np.testing.assert_array_equal, bert_jax.load(tmp_path / "model" / name).params, bert.params)
    for path in (tmp_path / "model").glob("bert_model.ckpt.*"):
        (tmp_path / "model" / path.name.replace("bert_model.ckpt", "model.ckpt-12")).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"bert_model.ckpt.index and model.ckpt-12.index"):
        bert_jax.load(tmp_path / "model")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files(saved, keep):
    _, directory = saved
    for path in directory.iterdir():
        if path.name.split(".")[0] in ("model", "bert_model", "flax_model"):
            whole = path.read_bytes()
            path.write_bytes(whole[: int(len(whole) * keep)])
            with pytest.raises(UserError, match=f"{path.name}.* is (not (a )?whole|empty)|{path.name}.*no place"):
                bert_jax.load(directory)
            path.write_bytes(whole)
    bert_jax.load(directory)


def test_flipped_bits_of_a_tensorflow_checkpoint(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="google")
    rng = np.random.default_rng(0)
    data = tmp_path / "model" / "bert_model.ckpt.data-00000-of-00001"
    whole = bytearray(data.read_bytes())
    whole[100] ^= 1
    data.write_bytes(whole)
    with pytest.raises(UserError, match=r"data-00000-of-00001 is damaged: bert/.* differs from its checksum"):
        bert_jax.load(tmp_path / "model")
    whole[100] ^= 1
    data.write_bytes(whole)
    for path in (tmp_path / "model").glob("bert_model.ckpt.*"):
        whole = path.read_bytes()
        # An index ends with a footer, in which the padding is not significant.
        for position in rng.integers(0, len(whole) - 48 * path.name.endswith("index"), 20):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"whole|damaged|no file"):
                bert_jax.load(tmp_path / "model")
        path.write_bytes(whole)


def test_unsupported_tensorflow_checkpoints(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="google")
    (tmp_path / "model" / "bert_model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"There is no file .*data-00000-of-00001"):
        bert_jax.load(tmp_path / "model")
    index = epath.Path(tmp_path / "model" / "bert_model.ckpt.index")
    for change, sentence in (
        ({"offset": -1}, "is not whole"),
        ({"size": 2**40}, "is not whole"),
        ({"size": 0, "shape": {"dim": [{"size": 2**32}, {"size": 2**32}]}}, "is not whole"),
        ({"shape": {"dim": [{"size": -4}, {"size": -4}]}}, "is not whole"),
        ({"dtype": 7}, "TensorFlow's data type 7"),
        ({"slices": [{}]}, "is divided into slices"),
        ({"shard_id": 2**31 - 2}, "There is no file"),
    ):
        entry = google._Entry(**{"dtype": 1, "size": 12, "shape": {"dim": [{"size": 3}]}} | change)
        header = google._Header(num_shards=2**31 - 1 if "shard_id" in change else 1)
        index.write_bytes(table({b"": header, b"bert/pooler/dense/bias": entry}))
        (tmp_path / "model" / "bert_model.ckpt.data-00000-of-00001").write_bytes(bytes(12))
        with pytest.raises(UserError, match=sentence):
            bert_jax.load(tmp_path / "model")
    index.write_bytes(table({b"": google._Header(num_shards=1, endianness=1)}))
    with pytest.raises(UserError, match="big-endian"):
        bert_jax.load(tmp_path / "model")
    google.write(index, {"_CHECKPOINTABLE_OBJECT_GRAPH": np.ones(1)})
    with pytest.raises(UserError, match="TensorFlow 2 object graph"):
        bert_jax.load(tmp_path / "model")


def table(messages):
    """A sorted string table of one block."""
    blocks = [google._block({key: message.SerializeToString() for key, message in messages.items()}), google._block({})]
    content, handles = b"", []
    for block in blocks:
        handles.append(google._varint(len(content)) + google._varint(len(block)))
        content += google._sealed(block)
    last = google._block({max(messages): handles[0]})
    footer = (handles[1] + google._varint(len(content)) + google._varint(len(last))).ljust(40, b"\0")
    return content + google._sealed(last) + footer + struct.pack("<Q", google._MAGIC)


class Attack:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def torch_zip(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code(bert, tmp_path, legacy):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    (tmp_path / "model" / "model.safetensors").unlink()
    path = tmp_path / "model" / "pytorch_model.bin"
    attack = pickle.dumps(collections.OrderedDict(weight=Attack(tmp_path / "was-run")))
    if legacy:
        path.write_bytes(b"".join(map(pickle.dumps, (pickles._MAGIC, pickles._PROTOCOL, {}))) + attack)
    else:
        torch_zip(path, attack)
    with pytest.raises(UserError, match=r"could run code \(it refers to (_)?io.open\), and it was not executed"):
        bert_jax.load(tmp_path / "model")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch FloatStorage"])
def test_a_pickle_cannot_modify_the_objects_it_gets(tmp_path, name):
    module, attribute = name.split()
    # GLOBAL, then BUILD with a pair of states, the second of which is set attribute by attribute.
    program = f"c{module}\n{attribute}\n(N(dS'__defaults__'\nI7\nstb."
    torch_zip(tmp_path / "x.bin", program.encode())
    before = dict(vars(pickles))
    with pytest.raises(UserError, match=r"not a whole PyTorch state dict: .*attribute"):
        pickles.read(epath.Path(tmp_path / "x.bin"))
    assert dict(vars(pickles)) == before
    assert pickles._RebuildTensor.__call__.__defaults__ is None


def test_pickles_that_are_not_state_dicts(tmp_path):
    path = epath.Path(tmp_path / "x.bin")
    for content, sentence in {
        pickle.dumps({"a": 1}): "it has another format",
        b"": "not a whole PyTorch state dict",
        b"PK\3\4 and no more": "not a whole PyTorch state dict",
        b"\x80\x04." * 3: "not a whole PyTorch state dict",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            pickles.read(path)
    torch_zip(path, pickle.dumps({"epoch": 3}))
    with pytest.raises(UserError, match="objects other than named tensors"):
        pickles.read(path)


def state_dict_pickle(shape, strides=(1,), elements=4, offset=0):
    """The pickle of a state dict with one tensor, written by hand."""
    program = (
        "ccollections\nOrderedDict\n)R(S'w'\nctorch._utils\n_rebuild_tensor_v2\n("
        "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n" + f"I{elements}\ntQ"
        f"I{offset}\n({''.join(f'I{size}' + chr(10) for size in shape)}t({''.join(f'I{size}' + chr(10) for size in strides)}t"
        "I00\nNtRu."
    )
    return program.encode()


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (state_dict_pickle([5]), "extends beyond its storage"),
        (state_dict_pickle([2], offset=3), "extends beyond its storage"),
        (state_dict_pickle([2], strides=[-1]), "extends beyond its storage"),
        (state_dict_pickle([10**12], strides=[0]), "extends beyond its storage"),
        (state_dict_pickle([5], elements=5), "the size of archive/data/0 differs from its description"),
        (b"}r\x00\x00\x00\x10.", "allocates more memory than a state dict needs"),
    ],
)
def test_pickles_of_tensors_outside_their_storage(tmp_path, program, sentence):
    path = epath.Path(tmp_path / "x.bin")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict_pickle([2, 2], strides=[2, 1]))
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(pickles.read(path)["w"], [[0, 1], [2, 3]])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(UserError, match=sentence):
        pickles.read(path)


def test_big_endian_and_damaged_pickles(tmp_path):
    path = epath.Path(tmp_path / "x.bin")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict_pickle([4]))
        archive.writestr("archive/byteorder", "big")
        archive.writestr("archive/data/0", np.full(4, 7, np.float32).tobytes())
    with pytest.raises(UserError, match="big-endian"):
        pickles.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict_pickle([4]))
        archive.writestr("archive/data/0", np.full(4, 7, np.float32).tobytes())
    content = path.read_bytes()
    path.write_bytes(content.replace(np.float32(7).tobytes(), np.float32(8).tobytes(), 1))
    with pytest.raises(UserError, match="Bad CRC-32"):
        pickles.read(path)


def test_invalid_values(saved):
    """Values that are not finite, not floating-point numbers, or present twice."""
    family, directory = saved
    tensors, write = stored(family, directory)
    bias = next(name for name in tensors if "pooler" in name and "bias" in name)
    write(tensors | {bias: np.full(32, np.nan, np.float32)})
    with pytest.raises(UserError, match=f"{bias} contains values that are not finite"):
        bert_jax.load(directory)
    joint = "." if family == "hf" else "/"
    write(tensors | {bias.removeprefix(f"bert{joint}"): tensors[bias]})
    with pytest.raises(UserError, match=f"contains {bias} twice"):
        bert_jax.load(directory)
    if family != "google":  # TensorFlow files are written as float32.
        write(tensors | {bias: np.ones(32, np.int64)})
        with pytest.raises(UserError, match=f"{bias} has dtype int64; parameters must be floating-point numbers"):
            bert_jax.load(directory)


def test_partial_files(bert, tmp_path):
    """The word embeddings can be stored as the decoder alone; the outputs of a classifier are known without its bias."""
    bert_jax.save(bert, tmp_path / "model", to="hf")
    tensors, write = stored("hf", tmp_path / "model")
    word = tensors.pop("bert.embeddings.word_embeddings.weight")
    write(tensors | {"cls.predictions.decoder.weight": word})
    jax.tree.map(np.testing.assert_array_equal, bert_jax.load(tmp_path / "model").params, bert.params)
    del tensors["classifier.bias"]
    write(tensors | {"bert.embeddings.word_embeddings.weight": word})
    with pytest.warns(BertWarning, match=r"initial values: sequence_classification/bias\."):
        assert bert_jax.load(tmp_path / "model", partial=True).params["sequence_classification"]["bias"].shape == (3,)


def test_msgpack_and_safetensors_without_parameters(tmp_path):
    path = epath.Path(tmp_path / "flax_model.msgpack")
    for value in ({"a": {"b": "text"}}, [1, 2], {"params": [1]}, {"params": 1}, {"__msgpack_chunked_array__": True}):
        content = flax.serialization.msgpack_serialize(value)
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"values that are not arrays|not a whole Flax"):
            hf.read(path)
    path = epath.Path(tmp_path / "model.safetensors")
    path.write_bytes(safetensors.numpy.save({"a": np.ones(3, np.complex64)}))
    with pytest.raises(UserError, match="a has dtype C64, which is not supported"):
        hf.read(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        hf.read(path)


def test_missing_parts(tmp_path):
    path = epath.Path(tmp_path / "model.safetensors.index.json")
    path.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(UserError, match=r"There is no file .*model-1.safetensors, which model.safetensors.index.json lists"):
        hf.read(path)
    hf.write_safetensors(epath.Path(tmp_path / "model-1.safetensors"), {"b": np.ones(2)})
    with pytest.raises(UserError, match="lists 1 tensors that its files do not contain, such as a"):
        hf.read(path)
    hf.write_safetensors(epath.Path(tmp_path / "model-2.safetensors"), {"b": np.ones(2)})
    path.write_text(json.dumps({"weight_map": {"b": "model-1.safetensors", "c": "model-2.safetensors"}}))
    with pytest.raises(UserError, match="both contain b"):
        hf.read(path)
    for wrong in (3, ["a"], "../model.safetensors", ".", path.name):
        path.write_text(json.dumps({"weight_map": {"a": wrong}}))
        with pytest.raises(UserError, match="There is no file"):
            hf.read(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        hf.read(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        hf.read(path)


@pytest.mark.parametrize(
    "head", ["sequence_classification", "multilabel_classification", "regression", "token_classification", "multiple_choice"]
)
def test_the_head_of_a_classifier(bert, tmp_path, head):
    """It is read from the config; checkpoints of the original's code do not say it, so the user does."""
    outputs = 1 if head in ("regression", "multiple_choice") else 3
    other = "token_classification" if head != "token_classification" else "sequence_classification"
    model = dataclasses.replace(bert, params=init_params(bert.config, jax.random.key(0), heads={head: outputs}), labels=())
    for to in ("hf", "google", "flax"):
        bert_jax.save(model, tmp_path / to, to=to)
        assert [*bert_jax.load(tmp_path / to).params] == ["bert", head]
        with pytest.raises(UserError, match=f"says that its classifier is a {head} head, not {other}"):
            bert_jax.load(tmp_path / to, head=other)
        path = tmp_path / to / ("bert_config.json" if to == "google" else "config.json")
        description = json.loads(path.read_text())
        del description["architectures"]
        description.pop("problem_type", None)
        path.write_text(json.dumps(description))
        with pytest.warns(BertWarning, match=r"the classifier was not read, since .* says which head it is; name the head"):
            assert [*bert_jax.load(tmp_path / to).params] == ["bert"]
        assert [*bert_jax.load(tmp_path / to, head=head).params] == ["bert", head]
    bert_jax.save(dataclasses.replace(bert, params={"bert": bert.params["bert"]}), tmp_path / "encoder", to="hf")
    with pytest.raises(UserError, match=f"no classifier that could be the {head} head"):
        bert_jax.load(tmp_path / "encoder", head=head)


def test_multilabel_classification_is_a_problem_type(bert, tmp_path):
    """transformers' name is written and read without a warning, together with the labels."""
    params = init_params(bert.config, jax.random.key(0), heads={"multilabel_classification": 3})
    bert_jax.save(dataclasses.replace(bert, params=params), tmp_path / "model", to="hf")
    description = json.loads((tmp_path / "model" / "config.json").read_text())
    assert description["architectures"] == ["BertForSequenceClassification"]
    assert description["problem_type"] == "multi_label_classification"
    assert description["id2label"] == {"0": "a", "1": "b", "2": "c"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = bert_jax.load(tmp_path / "model")
    assert loaded.labels == ("a", "b", "c")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_weights_without_a_vocabulary(bert, tmp_path):
    bert_jax.save(dataclasses.replace(bert, tokenizer=None), tmp_path / "model", to="hf")
    loaded = bert_jax.load(tmp_path / "model")
    assert loaded.tokenizer is None
    assert loaded.encode({"input_ids": [[2, 7, 3]]}).hidden.shape == (1, 3, 32)
    with pytest.raises(UserError, match="has no vocabulary"):
        loaded.encode(["alpha"])
    bert_jax.save(loaded, tmp_path / "orbax", to="orbax")
    assert bert_jax.load(tmp_path / "orbax").tokenizer is None


def test_other_tokenizers_are_refused(bert, tmp_path):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    sentence = "names the tokenizer BertJapaneseTokenizer, which is not known to split text as BERT does"
    with pytest.warns(BertWarning, match=sentence):
        loaded = bert_jax.load(tmp_path / "model")
    assert loaded.encode({"input_ids": [[2, 5, 3]]}).hidden.shape == (1, 3, 32)
    with pytest.raises(UserError, match=sentence):
        loaded.embed(["alpha"])
    for name in ("vocab.txt", "tokenizer.json"):
        (tmp_path / "model" / name).unlink()
    assert bert_jax.load(tmp_path / "model").tokenizer is None


def test_sinusoidal_positions_are_written_as_a_table(bert, tmp_path):
    config = dataclasses.replace(bert.config, position_embedding_type="sinusoidal")
    model = Bert(config, init_params(config, jax.random.key(0)), bert.tokenizer)
    bert_jax.save(model, tmp_path / "model", to="hf")
    loaded = bert_jax.load(tmp_path / "model")
    assert loaded.config.position_embedding_type == "learned"
    texts = ["alpha bravo charlie"]
    np.testing.assert_allclose(loaded.encode(texts).hidden, model.encode(texts).hidden, rtol=1e-6, atol=1e-6)


def test_report_and_verification(bert, tmp_path):
    report = bert_jax.save(bert, tmp_path / "model", to="google", verify=True)
    assert json.loads((tmp_path / "model" / "conversion.json").read_text()) == report
    (reading,) = report["verification"]
    assert reading["largest_differences"] == dict.fromkeys(("hidden", "pooled", *HEADS), 0.0)
    tensors, _ = stored("google", tmp_path / "model")
    assert [(entry["name"], tuple(entry["shape"])) for entry in report["tensors"]] == [
        (name, tensors[name].shape) for name in sorted(tensors)
    ]
    for entry in report["tensors"]:
        assert entry["sha256"] == hashlib.sha256(tensors[entry["name"]].tobytes()).hexdigest()
    with pytest.raises(UserError, match="exists already"):
        bert_jax.save(bert, tmp_path / "model", to="google")


def test_a_failed_conversion_leaves_nothing(bert, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        bert_jax.save(bert, tmp_path / "model", to="hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_run_can_be_saved_in_every_format(run_config, tmp_path):
    # Other formats do not store how layers are compiled, so the default is used for equal programs.
    run_config = dataclasses.replace(run_config, model=dataclasses.replace(run_config.model, layers="unroll"))
    bert_jax.pretrain(run_config)
    run = bert_jax.load(run_config.run)
    assert run.config == run_config.model
    predictions = run.fill_mask("alpha [MASK] charlie.")[0]
    assert len(predictions) == 5
    assert 0 < sum(prediction.probability for prediction in predictions) <= 1
    for to in ("hf", "google", "flax", "orbax"):
        bert_jax.save(run, tmp_path / to, to=to)
        loaded = bert_jax.load(tmp_path / to)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, run.params)
        assert loaded.fill_mask("alpha [MASK] charlie.") == run.fill_mask("alpha [MASK] charlie.")
