"""WordPiece as the original tokenizes (``tokenization.py``), computed by the ``tokenizers`` library."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bert_jax.config.validation import check_types, parse_json, require
from bert_jax.errors import UserError
from bert_jax.tokenizers.protocol import SPECIALS, UNK, Aligned, Pieces, find_specials

VOCAB, CONFIG, JSON = "vocab.txt", "tokenizer_config.json", "tokenizer.json"
CONTINUATION = "##"
# The original gives up on longer words; the tokenizers library would at 100.
_LONGEST, _LONGEST_WORD = "max_input_chars_per_word", 200
_SETTINGS: dict[str, Any] = {"do_lower_case": bool, "strip_accents": bool, "tokenize_chinese_chars": bool, _LONGEST: int}
# Uncased vocabularies have hardly a capital letter, cased ones a fifth of their pieces.
_FEW = 0.01
# An encoding of the library takes some hundred bytes a piece, an array eight.
_AT_ONCE = 1024


class WordPiece:
    """Greedy longest-match pieces of words split at spaces and punctuation.

    Args:
      files: ``vocab.txt``, a piece a line, and optionally ``tokenizer_config.json`` with ``do_lower_case``,
        ``strip_accents`` (as ``do_lower_case`` where nothing is said), ``tokenize_chinese_chars`` and
        ``max_input_chars_per_word``. Where nothing is said of case, a vocabulary with capital letters is cased.

    Raises:
      UserError: the vocabulary is not UTF-8, lacks a special piece or holds a piece twice.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        try:
            text = files[VOCAB].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{VOCAB} is not UTF-8 text (byte {error.start}).") from None
        # Not splitlines, which also splits at letters that may be pieces; some vocabularies hold such a letter alone.
        self.pieces = [line.strip() or line for line in text.removesuffix("\n").split("\n")]
        self.specials = find_specials(self.pieces, VOCAB)
        given = _read_config(files[CONFIG]) if CONFIG in files else {}
        self._capitals = [piece for piece in self.pieces if piece != piece.lower() and piece not in SPECIALS]
        self._cased = len(self._capitals) > _FEW * len(self.pieces)
        self.lowercase: bool = given.get("do_lower_case", not self._cased)
        self.files = {VOCAB: files[VOCAB], CONFIG: files.get(CONFIG, _config(lowercase=self.lowercase))}
        vocab = {piece: number for number, piece in enumerate(self.pieces)}
        self._engine = _engine(
            models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=given.get(_LONGEST, _LONGEST_WORD)),
            lowercase=self.lowercase,
            strip_accents=given.get("strip_accents", self.lowercase),
            chinese=given.get("tokenize_chinese_chars", True),
        )
        self._begins = np.array([not piece.startswith(CONTINUATION) for piece in self.pieces])

    def doubts(self) -> list[str]:
        """Signs that case is folded for a cased vocabulary, or kept for an uncased one, in sentences."""
        if self.lowercase and self._cased:
            return [
                f"The text is lower-cased, but {len(self._capitals):,} pieces of {VOCAB}, such as {self._capitals[-1]!r}, have "
                f"capital letters: the model seems to be cased; set do_lower_case to false in {CONFIG}."
            ]
        if not self.lowercase and not self._capitals:
            return [
                f"The text keeps its capital letters, but no piece of {VOCAB} has any, so words with them become {UNK}: "
                f"the model seems to be uncased; set do_lower_case to true in {CONFIG}."
            ]
        return []

    @classmethod
    def train(cls, texts: Callable[[], Iterable[str]], size: int, *, lowercase: bool) -> WordPiece:
        """Learn a vocabulary of at most ``size`` pieces, the five special ones first; the same one each time.

        Raises:
          UserError: the characters of the text alone are more than ``size``.
        """
        # The library numbers single letters in the order of a randomly seeded hash table and breaks ties between
        # merges by those numbers. A first pass finds the letters; named beforehand, in order, they are numbered by us.
        letters = set(_learn(texts(), len(SPECIALS), lowercase, [])) - set(SPECIALS)
        continued = sorted(letter for letter in letters if letter.startswith(CONTINUATION))
        if size < len(SPECIALS) + len(letters):
            raise UserError(
                f"The text has {len(letters)} letters (at the start and inside of words); "
                f"a vocabulary of {size} pieces cannot hold them."
            )
        pieces = _learn(texts(), size, lowercase, continued)
        lines = "".join(f"{piece}\n" for piece in pieces)
        return cls({VOCAB: lines.encode(), CONFIG: _config(lowercase=lowercase)})

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        found = []
        # A part at a time: while the engine runs, Python hears no Ctrl-C.
        for first in range(0, len(texts), _AT_ONCE):
            for encoding in self._engine.encode_batch_fast(list(texts[first : first + _AT_ONCE]), add_special_tokens=False):
                ids = np.array(encoding.ids, np.int32)
                found.append(Pieces(ids, self._begins[ids]))
        return found

    def align(self, texts: Sequence[str]) -> list[Aligned]:
        aligned = []
        for first in range(0, len(texts), _AT_ONCE):
            some = list(texts[first : first + _AT_ONCE])
            for text, encoding in zip(some, self._engine.encode_batch(some, add_special_tokens=False), strict=True):
                ids = np.array(encoding.ids, np.int32)
                spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
                aligned.append(Aligned(ids, self._begins[ids], spans if text.isascii() else _with_marks(text, spans)))
        return aligned

    def decode(self, ids: Sequence[int]) -> str:
        return self._engine.decode(list(ids), skip_special_tokens=False)


def _with_marks(text: str, spans: np.ndarray) -> np.ndarray:
    """Spans that end after the accents on their last letter, not before them, where no other piece holds these."""
    if not len(spans):
        return spans
    marks = np.array([unicodedata.category(letter) == "Mn" for letter in text] + [False])
    places = np.arange(len(marks))
    after = np.minimum.accumulate(np.where(marks, len(marks), places)[::-1])[::-1]
    following = np.append(spans[1:, 0], len(text))
    ends = np.maximum(spans[:, 1], np.minimum(after[spans[:, 1]], following))
    return np.stack([spans[:, 0], ends], axis=1).astype(np.int32)


def _learn(texts: Iterable[str], size: int, lowercase: bool, letters: list[str]) -> list[str]:
    # Accents go only with case: an accented word of a cased vocabulary keeps its accents.
    engine = _engine(models.WordPiece(unk_token=UNK), lowercase=lowercase, strip_accents=lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIALS, *letters],
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    vocab = engine.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def unpack(files: dict[str, bytes]) -> dict[str, bytes]:
    """``vocab.txt`` and ``tokenizer_config.json`` out of the ``tokenizer.json`` of other libraries.

    Padding and truncation that are set in it are left behind. What ``tokenizer_config.json`` says goes before.

    Raises:
      UserError: it is no BERT WordPiece tokenizer, or ``vocab.txt`` beside it holds other pieces.
    """
    stored = parse_json(files[JSON], JSON)
    try:
        model, normalizer = stored["model"], stored["normalizer"]
        vocab, pieces = model["vocab"], sorted(model["vocab"], key=model["vocab"].__getitem__)
        kinds = (
            model.get("type", "WordPiece"), normalizer["type"], stored["pre_tokenizer"]["type"],
            model.get("continuing_subword_prefix", CONTINUATION), model.get("unk_token", UNK),
        )  # fmt: skip
        added = [token["content"] for token in stored.get("added_tokens") or () if token["content"] not in vocab]
        counts = [vocab[piece] for piece in pieces] == [*range(len(pieces))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{JSON} does not describe a WordPiece tokenizer ({type(error).__name__}: {error}).") from None
    if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer", CONTINUATION, UNK) or not counts:
        raise UserError(f"{JSON} describes another tokenizer than BERT's WordPiece: {', '.join(map(str, kinds))}.")
    if added:
        raise UserError(f"{JSON} adds pieces outside of its vocabulary, {added[0]!r} among them, which is not supported.")
    said = {
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "max_input_chars_per_word": model.get("max_input_chars_per_word", 100),
    }
    said |= parse_json(files.get(CONFIG, b"{}"), CONFIG)
    text = "".join(f"{piece}\n" for piece in pieces)
    beside = files[VOCAB].decode("utf-8", "replace").split() if VOCAB in files else text.split()
    if beside != text.split():
        number = next((n for n, pair in enumerate(zip(beside, text.split(), strict=False)) if len({*pair}) > 1), len(pieces))
        raise UserError(f"{VOCAB} and {JSON} hold different pieces from number {number} on; remove the one that is wrong.")
    return {VOCAB: files.get(VOCAB, text.encode()), CONFIG: json.dumps(said, indent=2).encode()}


def _read_config(content: bytes) -> dict[str, Any]:
    """What the file says of the tokenizer; null says nothing."""
    value = parse_json(content, CONFIG)
    require(isinstance(value, dict), f"{CONFIG} holds a {type(value).__name__}, not a JSON object.")
    said = {key: value[key] for key in _SETTINGS if value.get(key) is not None}
    check_types(said, _SETTINGS, CONFIG)
    require(said.get(_LONGEST, 1) > 0, f"{CONFIG}.{_LONGEST} is {said.get(_LONGEST)}; it must be greater than 0.")
    return said


def _engine(model: models.WordPiece, *, lowercase: bool, strip_accents: bool, chinese: bool = True) -> Engine:
    engine = Engine(model)
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix=CONTINUATION)
    return engine


def _config(*, lowercase: bool) -> bytes:
    # The file that BERT checkpoints carry; other libraries read the vocabulary right through it.
    return json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}, indent=2).encode()
