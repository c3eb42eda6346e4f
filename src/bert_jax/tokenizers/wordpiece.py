"""WordPiece as the original tokenizes (``tokenization.py``), computed by the ``tokenizers`` library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bert_jax.errors import UserError
from bert_jax.tokenizers.base import SPECIALS, UNK, Pieces, find_specials

VOCAB, CONFIG = "vocab.txt", "tokenizer_config.json"
CONTINUATION = "##"
# The original gives up on longer words; the tokenizers library would at 100.
_LONGEST_WORD = 200


class WordPiece:
    """Greedy longest-match pieces of words split at spaces and punctuation.

    Args:
      files: ``vocab.txt``, a piece a line, and optionally ``tokenizer_config.json`` with ``do_lower_case``,
        which also strips accents (true where nothing is said, as in the original).

    Raises:
      UserError: the vocabulary is not UTF-8, lacks a special piece or holds a piece twice.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        try:
            text = files[VOCAB].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{VOCAB} is not UTF-8 text (byte {error.start}).") from None
        # Not splitlines, which also splits at letters that may be pieces.
        self.pieces = [line.strip() for line in text.removesuffix("\n").split("\n")]
        self.specials = find_specials(self.pieces, VOCAB)
        self.files = {VOCAB: files[VOCAB], CONFIG: files.get(CONFIG, _config(lowercase=True))}
        try:
            lowercase = bool(json.loads(self.files[CONFIG]).get("do_lower_case", True))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{CONFIG} is not a JSON object: {error}.") from None
        vocab = {piece: number for number, piece in enumerate(self.pieces)}
        self._engine = _engine(models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=_LONGEST_WORD), lowercase)
        self._begins = np.array([not piece.startswith(CONTINUATION) for piece in self.pieces])

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
        ids = (
            np.array(encoding.ids, np.int32) for encoding in self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        )
        return [Pieces(row, self._begins[row]) for row in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return self._engine.decode(list(ids), skip_special_tokens=False)


def _learn(texts: Iterable[str], size: int, lowercase: bool, letters: list[str]) -> list[str]:
    engine = _engine(models.WordPiece(unk_token=UNK), lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIALS, *letters],
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    vocab = engine.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def _engine(model: models.WordPiece, lowercase: bool) -> Engine:
    engine = Engine(model)
    # Accents go only with case: an accented word of a cased vocabulary keeps its accents.
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix=CONTINUATION)
    return engine


def _config(*, lowercase: bool) -> bytes:
    # The file that BERT checkpoints carry; other libraries read the vocabulary right through it.
    return json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}, indent=2).encode()
