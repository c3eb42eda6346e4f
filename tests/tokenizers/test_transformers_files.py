"""Random tokenizer directories give the ids that transformers gives, and are exported to files that give the same ids."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
import transformers

from bert_jax import tokenizers
from bert_jax.errors import BertWarning, UserError
from bert_jax.tokenizers import UnsupportedTokenizer

NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OTHER_NAMES = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
KEYS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
CLASSES = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizerFast", "TokenizersBackend", None)
GENERIC = "TokenizersBackend"
WORDS = ("a", "b", "c", "the", "cat", "Cat", "##s", "##t", "##a", "##b", "##ing", "walk", "é", "e", "É", "cafe", "café", "中", "国")
ADDED = ("[E1]", "[unused0]", "<ent>", "New York", "CAT", "new", "é!", "##x", "[MASK2]", "walk", "ß", "中国", "a-b")
CHARACTERS = "abcstABÉéßİ中国 .,-!\t\u00a0\u200b\ufffd\x07\u3000"
ALPHABET = (*CHARACTERS, "the ", "cat", "Walking ", " cafés", "e\u0301", "[MASK]", "[CLS]", "<mask>")


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _vocab(rng: random.Random, names: tuple[str, ...]) -> list[str]:
    words = rng.sample(WORDS, rng.randint(6, len(WORDS)))
    lines = [*names, "[unused0]", "[unused1]", *dict.fromkeys([*"abcst.,-!", *(f"##{letter}" for letter in "abcst"), *words])]
    if rng.random() < 0.1:
        rng.shuffle(lines)
    return lines


def _added(rng: random.Random, token: str) -> dict[str, Any]:
    flags = {name: rng.random() < 0.3 for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
    return {"content": token, **flags}


def write_directory(directory: Path, seed: int) -> list[str]:
    """Write files of a tokenizer, and return texts that contain its added tokens."""
    rng = random.Random(seed)
    names = OTHER_NAMES if rng.random() < 0.3 else NAMES
    lines, name = _vocab(rng, names), rng.choice(CLASSES)
    has_json = name == GENERIC or rng.random() < 0.5
    added = rng.sample(ADDED, rng.randint(0, 4))
    settings = {
        "do_lower_case": rng.random() < 0.5,
        "strip_accents": rng.choice((None, True, False)),
        "tokenize_chinese_chars": rng.random() < 0.7,
        "clean_text": rng.random() < 0.7,
    }
    config: dict[str, Any] = {"tokenizer_class": name, **settings} if name else settings
    if names is OTHER_NAMES or rng.random() < 0.5:
        config |= dict(zip(KEYS, names, strict=True))
    vocab = {token: token_id for token_id, token in enumerate(lines)}
    if has_json:
        _write_tokenizer(directory, rng, vocab, names, added, settings)
    else:
        ids = {token: vocab.get(token, len(lines) + index) for index, token in enumerate(t for t in added if t not in vocab)}
        ids |= {token: vocab[token] for token in added if token in vocab}
        match rng.randrange(4):
            case 0:
                config["added_tokens_decoder"] = {str(token_id): _added(rng, token) for token, token_id in ids.items()}
            case 1:
                _write(directory / "added_tokens.json", ids)
            case 2:
                config["additional_special_tokens"] = added
            case 3:
                _write(
                    directory / "special_tokens_map.json",
                    dict(zip(KEYS, names, strict=True)) | {"additional_special_tokens": added},
                )
    if not has_json or rng.random() < 0.5:
        odd = rng.random()
        if not has_json and odd < 0.1:
            lines.insert(rng.randrange(len(lines)), rng.choice(("", lines[-1], "\u2028", "\u3000")))
        (directory / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write(directory / "tokenizer_config.json", config)
    _write(directory / "config.json", {"model_type": "bert"})
    return ["".join(rng.choice((*ALPHABET, *added, *added, " ")) for _ in range(rng.randint(1, 25))) for _ in range(12)]


def _write_tokenizer(
    directory: Path, rng: random.Random, vocab: dict[str, int], names: tuple[str, ...], added: list[str], settings: dict[str, Any]
) -> None:
    engine = library.Tokenizer(library.models.WordPiece(vocab, unk_token=names[1], max_input_chars_per_word=rng.choice((100, 7))))
    engine.normalizer = library.normalizers.BertNormalizer(
        clean_text=settings["clean_text"],
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["do_lower_case"] if rng.random() < 0.7 else rng.random() < 0.5,
    )
    engine.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    engine.post_processor = library.processors.TemplateProcessing(
        single=f"{names[2]} $A {names[3]}",
        pair=f"{names[2]} $A {names[3]} $B:1 {names[3]}:1",
        special_tokens=[(name, vocab[name]) for name in names[2:4]],
    )
    engine.add_special_tokens([*names])
    for token in added:
        flags = _added(rng, token)
        engine.add_tokens([library.AddedToken(flags.pop("content"), **flags)])
    engine.save(str(directory / "tokenizer.json"))


def ids_of_transformers(directory: Path, texts: list[str]) -> list[list[int]]:
    """Ids of texts without the special tokens around them, and with those inside of them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def ids_of_ours(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenized.ids.tolist() for tokenized in tokenizer.encode(texts)]


def compare(directory: Path, seed: int) -> str:
    """Compare one random directory and its export; the result is "equal", or what was refused."""
    texts = write_directory(directory, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BertWarning)
            tokenizer = tokenizers.load(directory, original=False)
    except UserError as error:
        if "added token" not in str(error):
            raise
        return "refused"
    expected = ids_of_transformers(directory, texts)
    assert ids_of_ours(tokenizer, texts) == expected, seed
    try:
        exported = tokenizers.export(tokenizer, 512)
    except UnsupportedTokenizer:
        return "export refused"
    target = directory / "exported"
    target.mkdir()
    for name, content in exported.items():
        (target / name).write_bytes(content)
    _write(target / "config.json", {"model_type": "bert"})
    assert ids_of_transformers(target, texts) == expected, seed
    assert ids_of_ours(tokenizers.load(target, original=False), texts) == expected, seed
    return "equal"


def _compare_many(tmp_path: Path, seeds: range) -> dict[str, int]:
    counts: dict[str, int] = {}
    for seed in seeds:
        directory = tmp_path / str(seed)
        directory.mkdir()
        result = compare(directory, seed)
        counts[result] = counts.get(result, 0) + 1
        shutil.rmtree(directory)
    return counts


def test_random_directories_have_the_ids_of_transformers(tmp_path: Path) -> None:
    counts = _compare_many(tmp_path, range(60))
    assert counts["equal"] > 30, counts


@pytest.mark.slow
def test_two_thousand_random_directories_have_the_ids_of_transformers(tmp_path: Path) -> None:
    counts = _compare_many(tmp_path, range(60, 2060))
    print(counts)
    assert counts["equal"] > 1200, counts
    assert counts.get("refused", 0) < 200, counts
