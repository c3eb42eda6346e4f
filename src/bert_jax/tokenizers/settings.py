"""What ``tokenizer_config.json`` says about a tokenizer: case, names of special tokens, and added tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import tokenizers as library

from bert_jax.config.validation import check_types
from bert_jax.errors import UserError
from bert_jax.io.parsing import parse_object
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS

CONFIG = "tokenizer_config.json"
NAME_KEYS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
"""Keys under which transformers stores the names of the five special tokens, in the order of ``SpecialTokens``."""
ADDED_KEY = "added_tokens_decoder"
"""Key of the added tokens: an object from ids to tokens."""
EXTRA_KEYS = ("additional_special_tokens", "extra_special_tokens")
"""Keys of lists of further special tokens; the second is the name in transformers 5."""
MAX_WORD_LENGTH_KEY = "max_input_chars_per_word"
RULES_KEY = "basic_tokenizer"
Rules = Literal["transformers", "google"]
"""Unicode rules by which text is cleaned and split into words: "transformers" are those of the tokenizers library, "google" those
of the original's ``tokenization.py``. They differ for rare characters only."""
# The original replaces words of more than 200 characters by [UNK]; transformers those of more than 100.
ORIGINAL_MAX_WORD_LENGTH = 200
_TYPES: dict[str, Any] = {
    "do_lower_case": bool,
    "strip_accents": bool,
    "tokenize_chinese_chars": bool,
    "clean_text": bool,
    MAX_WORD_LENGTH_KEY: int,
    RULES_KEY: str,
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class AddedToken(NamedTuple):
    """A token that is found in a text before the text is split into words, as ``tokenizers.AddedToken``."""

    content: str
    id: int | None = None
    """None: the id in the vocabulary, or else the first free one."""
    single_word: bool = False
    """Only between characters that do not belong to a word."""
    lstrip: bool = False
    """Together with white space on its left."""
    rstrip: bool = False
    """Together with white space on its right."""
    normalized: bool = False
    """Found in the normalized text, for example in lower case."""
    special: bool = True

    def flags(self) -> dict[str, bool]:
        """The five flags by name."""
        return {name: getattr(self, name) for name in _FLAGS}

    def to_library(self) -> library.AddedToken:
        """The same token as an object of the tokenizers library."""
        return library.AddedToken(self.content, **self.flags())


@dataclasses.dataclass(frozen=True)
class Settings:
    """The content of a ``tokenizer_config.json`` that changes token ids."""

    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    """None: as ``do_lower_case``."""
    tokenize_chinese_chars: bool = True
    clean_text: bool = True
    max_word_length: int = ORIGINAL_MAX_WORD_LENGTH
    rules: Rules = "transformers"
    names: tuple[str, ...] = SPECIAL_TOKENS
    """Names of the special tokens, in the order of ``SpecialTokens``."""
    added: tuple[AddedToken, ...] = ()
    """Added tokens in the order of their ids, those without an id last."""

    @classmethod
    def parse(cls, content: bytes | None) -> Settings:
        """Read the file's content; null counts as absent.

        Raises:
          UserError: it is not a JSON object, or a value has another type.
        """
        stored = parse_object(content, CONFIG) if content is not None else {}
        values = {key: stored[key] for key in _TYPES if stored.get(key) is not None}
        check_types(values, _TYPES, CONFIG)
        max_word_length = values.pop(MAX_WORD_LENGTH_KEY, ORIGINAL_MAX_WORD_LENGTH)
        if max_word_length <= 0:
            raise UserError(f"{CONFIG}.{MAX_WORD_LENGTH_KEY} is {max_word_length}; it must be greater than 0.")
        rules = values.pop(RULES_KEY, "transformers")
        if rules not in get_args(Rules):
            raise UserError(f"{CONFIG}.{RULES_KEY} is {rules!r}; choose one of {', '.join(get_args(Rules))}.")
        names = tuple(_name(stored.get(key), default, key) for key, default in zip(NAME_KEYS, SPECIAL_TOKENS, strict=True))
        return cls(**values, max_word_length=max_word_length, rules=rules, names=names, added=tuple(_added(stored)))

    def without_specials(self) -> Settings:
        """The settings with which the five special tokens are ordinary text."""
        return dataclasses.replace(self, added=tuple(token for token in self.added if token.content not in self.names))


def add_tokens(content: bytes | None, tokens: Sequence[AddedToken]) -> bytes:
    """Add tokens with ids to the content of a ``tokenizer_config.json``."""
    stored = with_tokens(parse_object(content, CONFIG) if content is not None else {}, tokens)
    return json.dumps(stored, indent=2, ensure_ascii=False).encode()


def place(added: Iterable[AddedToken], vocab: dict[str, int], lines: list[str]) -> tuple[tuple[AddedToken, ...], list[str]]:
    """Number the added tokens as transformers does: the id in the vocabulary, else the declared one, else the next.

    Returns:
      The tokens with their ids, and the token of every id.
    """
    placed: list[AddedToken] = []
    tokens = list(lines)
    for token in added:
        token_id = vocab.get(token.content, len(tokens) if token.id is None else token.id)
        tokens += [""] * (token_id + 1 - len(tokens))
        tokens[token_id] = token.content
        placed.append(token._replace(id=token_id))
    return tuple(placed), tokens


def with_tokens(config: dict[str, Any], tokens: Sequence[AddedToken]) -> dict[str, Any]:
    """A config with further added tokens, which have ids."""
    return config | {ADDED_KEY: (config.get(ADDED_KEY) or {}) | describe(tokens)} if tokens else config


def describe(tokens: Iterable[AddedToken]) -> dict[str, Any]:
    """The value of ``added_tokens_decoder`` for tokens with ids."""
    return {str(token.id): {"content": token.content} | token.flags() for token in tokens}


def parse_added(value: Any, where: str, *, token_id: int | None = None, **defaults: bool) -> AddedToken:
    """Read an added token: a string, or an object with ``content`` and flags.

    Raises:
      UserError: it is neither.
    """
    stored = {"content": value} if isinstance(value, str) else value
    if not isinstance(stored, dict) or not isinstance(stored.get("content"), str) or not stored["content"]:
        raise UserError(f"{where} is {json.dumps(value)[:60]}; an added token must be a string or an object with content.")
    flags = {name: stored[name] for name in _FLAGS if stored.get(name) is not None}
    check_types(flags, dict.fromkeys(_FLAGS, bool), where)
    flags = defaults | flags
    # As in the tokenizers library: special tokens are found in the text as it is, others in the normalized text.
    flags.setdefault("special", False)
    flags.setdefault("normalized", not flags["special"])
    return AddedToken(stored["content"], token_id, **flags)


def _name(value: Any, default: str, key: str) -> str:
    return default if value is None else parse_added(value, f"{CONFIG}.{key}").content


def _added(stored: dict[str, Any]) -> Iterable[AddedToken]:
    decoder = stored.get(ADDED_KEY) or {}
    if not isinstance(decoder, dict) or not all(key.isdecimal() for key in decoder):
        raise UserError(f"{CONFIG}.{ADDED_KEY} is not an object whose keys are token ids.")
    found = [
        parse_added(value, f"{CONFIG}.{ADDED_KEY}.{key}", token_id=int(key))
        for key, value in sorted(decoder.items(), key=lambda item: int(item[0]))
    ]
    for key in EXTRA_KEYS:
        values = stored.get(key) or []
        # transformers also stores an object from names to tokens.
        values = [*values.values()] if isinstance(values, dict) else values
        if not isinstance(values, list):
            raise UserError(f"{CONFIG}.{key} is {json.dumps(values)[:60]}; it must be a list of tokens.")
        known = {token.content for token in found}
        tokens = [parse_added(value, f"{CONFIG}.{key}", special=True) for value in values]
        found += [token for token in tokens if token.content not in known]
    return found
