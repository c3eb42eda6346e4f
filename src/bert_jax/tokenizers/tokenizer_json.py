"""Reads ``tokenizer.json``, the file of the tokenizers library."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from bert_jax.errors import BertWarning, UserError
from bert_jax.tokenizers.pieces import CONTINUATION
from bert_jax.tokenizers.settings import CONFIG, MAX_WORD_LENGTH_KEY, Settings, parse_added, with_tokens
from bert_jax.tokenizers.wordpiece import VOCAB, split_lines

JSON = "tokenizer.json"
BERT_CLASSES = (
    "BertTokenizer",
    "ConvBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "RetriBertTokenizer",
    "SqueezeBertTokenizer",
)
"""Classes of transformers that build BERT's tokenizer with the settings of the config, whose names may end in "Fast"."""
MPNET = "MPNetTokenizer"
MAX_WORD_LENGTH = 100
"""Characters of the longest word that transformers' ``BertTokenizer`` does not replace by [UNK]."""
# Settings of BERT's classes that no file changes.
FIXED = {"clean_text": True, MAX_WORD_LENGTH_KEY: MAX_WORD_LENGTH}


class UnsupportedTokenizer(UserError):
    """The files describe another tokenizer than BERT's, and are not damaged."""


def unpack(
    stored: dict[str, Any], vocab_file: bytes | None, config: dict[str, Any], *, is_generic: bool, has_decoder: bool
) -> tuple[bytes, dict[str, int], dict[str, Any]]:
    """The vocabulary of a ``tokenizer.json`` as a file and as ids, and the settings."""
    try:
        model, (normalizer, is_lowered) = stored["model"], _find_normalizer(stored["normalizer"])
        vocab: dict[str, int] = model["vocab"]
        parts = (
            model.get("type", "WordPiece"),
            normalizer["type"],
            stored["pre_tokenizer"]["type"],
            model.get("continuing_subword_prefix", CONTINUATION),
        )
        ids = [*vocab.values()]
        is_numbered = all(isinstance(token_id, int) and token_id >= 0 for token_id in ids) and len({*ids}) == len(ids)
        added = [
            parse_added({**token, "normalized": token.get("normalized", True)}, JSON, token_id=token["id"])
            for token in stored.get("added_tokens") or ()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UnsupportedTokenizer(f"{JSON} does not describe a WordPiece tokenizer ({type(error).__name__}: {error}).") from None
    if parts != ("WordPiece", "BertNormalizer", "BertPreTokenizer", CONTINUATION):
        raise UnsupportedTokenizer(f"{JSON} describes another tokenizer than BERT's WordPiece: {', '.join(map(str, parts))}.")
    if not is_numbered or any("\n" in token for token in vocab) or (len(ids) and max(ids) > 10 * len(ids)):
        raise UserError(f"{JSON} has a vocabulary whose ids are not those of a list of tokens.")
    own = {
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "clean_text": normalizer.get("clean_text", True),
        MAX_WORD_LENGTH_KEY: model.get(MAX_WORD_LENGTH_KEY, MAX_WORD_LENGTH),
    }
    if is_generic:
        if is_lowered and own["strip_accents"] is None:
            own["strip_accents"] = own["do_lower_case"]
        if is_lowered:
            own["do_lower_case"] = True
        _warn({key: config[key] for key, value in own.items() if config.get(key) not in (None, value)}, CONFIG, config)
        config = config | own
    else:
        if config.get("do_lower_case") is None:
            config = config | {"do_lower_case": own["do_lower_case"]}
        _warn(_overridden(own, config), JSON, config)
    _check_template(stored.get("post_processor"), config)
    # A class of BERT takes the added tokens of this file only where the config lists none.
    if is_generic or not has_decoder:
        known = {token.content for token in Settings.parse(json.dumps(config).encode()).added if token.id is not None}
        config = with_tokens(config, [token for token in added if token.content not in known])
    if vocab_file is not None:
        _check_equal(split_lines(vocab_file), {token.rstrip() or token: token_id for token, token_id in vocab.items()})
        return vocab_file, vocab, config
    names = {token_id: token for token, token_id in vocab.items()}
    return "".join(f"{names.get(token_id, '')}\n" for token_id in range(max(ids) + 1)).encode(), vocab, config


def _find_normalizer(normalizer: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """BERT's normalizer, and whether text is lower-cased besides, as sentence-transformers' ``do_lower_case`` does it."""
    if normalizer["type"] != "Sequence":
        return normalizer, False
    others = [part for part in normalizer["normalizers"] if part != {"type": "Lowercase"}]
    return (others[0], True) if len(others) == 1 else (normalizer, False)


def _overridden(own: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Settings of ``tokenizer.json`` that a class of BERT overrides."""
    used = Settings.parse(json.dumps(config | FIXED).encode())
    in_force = {
        "do_lower_case": used.do_lower_case,
        "strip_accents": used.do_lower_case if used.strip_accents is None else used.strip_accents,
        "tokenize_chinese_chars": used.tokenize_chinese_chars,
    } | FIXED
    own = {**own, "strip_accents": own["do_lower_case"] if own["strip_accents"] is None else own["strip_accents"]}
    return {key: value for key, value in own.items() if value != in_force[key]}


def _warn(ignored: Mapping[str, Any], file: str, config: Mapping[str, Any]) -> None:
    """Warn of settings in a file that count for nothing."""
    if ignored:
        settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in ignored.items())
        name, winner = config.get("tokenizer_class") or BERT_CLASSES[0], CONFIG if file == JSON else JSON
        warnings.warn(
            f"{file} has {settings}, which is not followed, as in transformers: for the class {name}, {winner} decides.",
            BertWarning,
            stacklevel=3,
        )


def _check_template(post_processor: Any, config: Mapping[str, Any]) -> None:
    """Warn where other special tokens than [CLS] and [SEP] would surround a text."""
    _, _, cls, sep, _ = Settings.parse(json.dumps(config).encode()).names
    try:
        match post_processor["type"]:
            case "TemplateProcessing":
                found = [[next(iter(part.values()))["id"] for part in post_processor[template]] for template in ("single", "pair")]
            case "BertProcessing":
                names = post_processor["cls"][0], post_processor["sep"][0]
                found = [[names[0], "A", names[1]], [names[0], "A", names[1], "B", names[1]]]
            case _:
                found = []
    except (KeyError, TypeError, IndexError, StopIteration, AttributeError):
        found = []
    if found != [[cls, "A", sep], [cls, "A", sep, "B", sep]] and config.get("tokenizer_class") != MPNET:
        warnings.warn(
            f"The post_processor of {JSON} is not followed: a text gets {cls} before it and {sep} after it, as in BERT.",
            BertWarning,
            stacklevel=2,
        )


def _check_equal(lines: list[str], packed: Mapping[str, int]) -> None:
    """Check that ``vocab.txt`` and ``tokenizer.json`` have the same tokens."""
    differing = [row for row, token in enumerate(lines) if packed.get(token, row) < row or (token and token not in packed)]
    differing += [row for token, row in packed.items() if row >= len(lines) or (lines[row] != token and token.strip())]
    if differing:
        raise UserError(f"{VOCAB} and {JSON} have different tokens from id {min(differing)} on; remove the file that is wrong.")
