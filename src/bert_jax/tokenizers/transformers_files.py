"""The files that transformers stores beside a vocabulary, reduced to ``vocab.txt`` and ``tokenizer_config.json``, and written.

``tokenizer.json`` holds a vocabulary, settings and added tokens, ``added_tokens.json`` ids of added tokens and
``special_tokens_map.json`` names of special tokens. Which of them counts follows transformers 5
(``PreTrainedTokenizerBase._from_pretrained``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from bert_jax.errors import BertWarning, UserError
from bert_jax.io.parsing import parse_object
from bert_jax.tokenizers.protocol import Tokenizer
from bert_jax.tokenizers.sentencepiece import SentencePiece
from bert_jax.tokenizers.settings import (
    ADDED_KEY,
    CONFIG,
    EXTRA_KEYS,
    MAX_WORD_LENGTH_KEY,
    NAME_KEYS,
    AddedToken,
    Settings,
    describe,
    parse_added,
    place,
    with_tokens,
)
from bert_jax.tokenizers.tokenizer_json import (
    BERT_CLASSES,
    FIXED,
    JSON,
    MAX_WORD_LENGTH,
    MPNET,
    UnsupportedTokenizer,
    unpack,
)
from bert_jax.tokenizers.wordpiece import VOCAB, WordPiece, split_lines

ADDED, SPECIALS = "added_tokens.json", "special_tokens_map.json"
# Classes for which `tokenizer.json` alone decides.
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
# It splits text with another program first, whatever files are there.
_JAPANESE = "BertJapaneseTokenizer"
# What MPNet's class takes where the config says nothing; its mask token includes the space before it.
_MPNET_NAMES = dict(zip(NAME_KEYS, ("<pad>", "[UNK]", "<s>", "</s>", {"content": "<mask>", "lstrip": True}), strict=True))


def reduce(files: Mapping[str, bytes], *, original: bool) -> dict[str, bytes]:
    """Reduce the files of a WordPiece tokenizer to ``vocab.txt`` and ``tokenizer_config.json``.

    A [`BertWarning`][bert_jax.BertWarning] names settings that change token ids elsewhere and are not followed here.

    Args:
      files: contents by file name, with ``vocab.txt`` or ``tokenizer.json`` among them.
      original: whether ``vocab.txt`` without a file of transformers is one of the original's, whose limit for the length of a
        word is higher.

    Raises:
      UnsupportedTokenizer: the files describe another tokenizer than BERT's.
      UserError: a file is damaged, or the two vocabularies differ.
    """
    if original and not {JSON, ADDED, SPECIALS} & set(files):
        return {**files, VOCAB: _strip_lines(files[VOCAB])}
    config = parse_object(files[CONFIG], CONFIG) if CONFIG in files else {}
    is_generic = _is_generic(config, has_json=JSON in files)
    has_decoder = ADDED_KEY in config
    extra = config.get(EXTRA_KEYS[1]) or config.get(EXTRA_KEYS[0])
    special = _strings(extra)
    if not has_decoder and SPECIALS in files:
        names = parse_object(files[SPECIALS], SPECIALS)
        special |= _strings(names.get(EXTRA_KEYS[1]))
        # transformers 5 takes additional_special_tokens of this file only where the config has no such list.
        keys = NAME_KEYS if extra else (*NAME_KEYS, EXTRA_KEYS[0])
        config |= {key: value for key, value in names.items() if key in keys}
        if isinstance(names.get(EXTRA_KEYS[1]), list):
            config[EXTRA_KEYS[1]] = [*(extra if isinstance(extra, list) else []), *names[EXTRA_KEYS[1]]]
    if config.get("tokenizer_class", "").removesuffix("Fast") == MPNET:
        config = _MPNET_NAMES | config
        warnings.warn(
            f"{CONFIG} names {MPNET}, which puts two separators between the texts of a pair; here a pair has one.",
            BertWarning,
            stacklevel=2,
        )
    if not has_decoder and ADDED in files:
        config = with_tokens(config, _read_added(parse_object(files[ADDED], ADDED), config, special))
    if JSON in files:
        vocab, ids, config = unpack(
            parse_object(files[JSON], JSON), files.get(VOCAB), config, is_generic=is_generic, has_decoder=has_decoder
        )
    else:
        vocab = files[VOCAB]
        ids = {token.rstrip(): token_id for token_id, token in enumerate(split_lines(vocab))}
    if not is_generic:
        config |= FIXED
    config = _number(config, vocab, ids)
    return {VOCAB: vocab, CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode()}


def _strip_lines(vocab: bytes) -> bytes:
    """Remove the white space around tokens, as the original does; a token that is only a space remains."""
    lines = vocab.decode("utf-8", "surrogateescape").split("\n")
    return "\n".join(line.strip() or line for line in lines).encode("utf-8", "surrogateescape")


def _number(config: dict[str, Any], vocab: bytes, known: Mapping[str, int]) -> dict[str, Any]:
    """Add the mask token where the vocabulary has none, and check that added tokens have the ids that transformers gives them.

    Args:
      config: the settings.
      vocab: content of ``vocab.txt``.
      known: id of each token as the tokenizers library reads them.
    """
    lines = split_lines(vocab)
    settings = Settings.parse(json.dumps(config).encode())
    if settings.names[1] not in known:
        return config  # WordPiece refuses it.
    mask = settings.names[-1]
    if mask not in known and mask not in {token.content for token in settings.added}:
        declared = [token.id for token in settings.added if token.id is not None]
        config = with_tokens(config, [AddedToken(mask, max([len(lines) - 1, *declared]) + 1)])
        settings = Settings.parse(json.dumps(config).encode())
    new = [token for token in place(settings.added, dict(known), lines)[0] if token.content not in known]
    for token_id, token in enumerate(new, len(known)):
        if token.id != token_id:
            raise UnsupportedTokenizer(
                f"The added token {token.content!r} should have the id {token.id}, but transformers gives it {token_id}, since "
                f"{VOCAB} has {len(known):,} different tokens on {len(lines):,} lines; remove repeated and blank lines."
            )
    return config


def _is_generic(config: Mapping[str, Any], *, has_json: bool) -> bool:
    """Whether ``tokenizer.json`` decides, rather than the class and the config."""
    name = config.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise UserError(f"{CONFIG}.tokenizer_class is {json.dumps(name)[:60]}; it must be the name of a class.")
    if name is None or name.removesuffix("Fast") in (*BERT_CLASSES, MPNET):
        return False
    if (not has_json and name not in _GENERIC) or name == _JAPANESE:
        raise UnsupportedTokenizer(f"{CONFIG} names the tokenizer {name}, which is not known to split text as BERT does.")
    return has_json


def export(tokenizer: Tokenizer, max_length: int | None = None) -> dict[str, bytes]:
    """Files from which transformers makes a tokenizer with the same ids.

    Args:
      tokenizer: the tokenizer.
      max_length: number of positions of its model; None: what the tokenizer's own files say, if they do.

    Raises:
      UnsupportedTokenizer: transformers has no tokenizer with these ids.
    """
    if not isinstance(tokenizer, WordPiece | SentencePiece):
        raise UnsupportedTokenizer(f"{type(tokenizer).__name__} is neither a WordPiece nor a SentencePiece tokenizer.")
    packed = tokenizer.to_json()
    settings = tokenizer.settings
    config: dict[str, Any] = dict(zip(NAME_KEYS, settings.names, strict=True))
    if max_length is None and CONFIG in tokenizer.files:
        max_length = parse_object(tokenizer.files[CONFIG], CONFIG).get("model_max_length")
    if max_length is not None:
        config["model_max_length"] = max_length
    added = [token for token in settings.added if token.content not in settings.names or token.flags() != _SPECIAL]
    if added:
        config[ADDED_KEY] = describe(settings.added)
    if extra := [token.content for token in settings.added if token.special and token.content not in settings.names]:
        config[EXTRA_KEYS[0]] = extra
    if isinstance(tokenizer, WordPiece):
        config |= {
            "do_lower_case": settings.do_lower_case,
            "strip_accents": settings.strip_accents,
            "tokenize_chinese_chars": settings.tokenize_chinese_chars,
            "clean_text": settings.clean_text,
            MAX_WORD_LENGTH_KEY: settings.max_word_length,
        }
    is_plain = False
    if isinstance(tokenizer, WordPiece):
        lines = split_lines(tokenizer.files[VOCAB])
        is_complete = all(token.content in lines for token in settings.added)
        is_plain = settings.clean_text and settings.max_word_length == MAX_WORD_LENGTH and (packed is not None or is_complete)
    if packed is None and (added or not is_plain):
        raise UnsupportedTokenizer("transformers would number the tokens of this vocabulary otherwise.")
    config["tokenizer_class"] = BERT_CLASSES[0] if is_plain else _GENERIC[0]
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    files = {name: content for name, content in tokenizer.files.items() if name != CONFIG}
    files[CONFIG] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    return files | ({JSON: packed} if packed is not None else {})


_SPECIAL = AddedToken("").flags()


def _strings(values: Any) -> set[str]:
    return {value for value in values if isinstance(value, str)} if isinstance(values, list) else set()


def _read_added(ids: dict[str, Any], config: Mapping[str, Any], special: set[str]) -> list[AddedToken]:
    """The tokens of ``added_tokens.json``; like transformers, only those named by a string are special from the start."""
    names = set(Settings.parse(json.dumps(config).encode()).names)
    special |= {config[key] for key in NAME_KEYS if isinstance(config.get(key), str)}
    for token, token_id in ids.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise UserError(f"{ADDED} gives {token!r} the id {token_id!r}; an id must be a number from 0.")
    return [
        parse_added(token, ADDED, token_id=token_id, special=token in special | names, normalized=token not in special)
        for token, token_id in ids.items()
    ]
