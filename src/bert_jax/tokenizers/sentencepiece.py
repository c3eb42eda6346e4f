"""SentencePiece vocabularies, unigram or BPE (Kudo and Richardson 2018)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import sentencepiece as spm

from bert_jax.errors import UserError
from bert_jax.tokenizers.base import CLS, MASK, PAD, SEP, UNK, Pieces, find_specials

MODEL = "spiece.model"
_SPACE = "▁"


class SentencePiece:
    """Pieces of raw text in which a space is a letter; a word begins where a piece begins with that letter.

    Args:
      files: ``spiece.model``, with the five special pieces in it.

    Raises:
      UserError: the model cannot be read or lacks a special piece.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {MODEL: files[MODEL]}
        self._engine = spm.SentencePieceProcessor()
        try:
            self._engine.LoadFromSerializedProto(files[MODEL])
        except RuntimeError as error:
            raise UserError(f"{MODEL} is not a SentencePiece model: {error}.") from None
        self.pieces = [self._engine.IdToPiece(number) for number in range(self._engine.GetPieceSize())]
        self.specials = find_specials(self.pieces, MODEL)
        self._begins = np.array([piece.startswith(_SPACE) for piece in self.pieces])

    @classmethod
    def train(
        cls, texts: Callable[[], Iterable[str]], size: int, *, model: Literal["unigram", "bpe"], lowercase: bool
    ) -> SentencePiece:
        """Learn a vocabulary of ``size`` pieces, the five special ones first.

        Raises:
          UserError: the text is too small for so many pieces.
        """
        stored = io.BytesIO()
        refused: list[UserError] = []

        def sentences() -> Iterator[str]:
            # The library would wrap what is wrong with the text into a message about itself.
            try:
                yield from texts()
            except UserError as error:
                refused.append(error)

        try:
            spm.SentencePieceTrainer.Train(
                sentence_iterator=sentences(),
                max_sentence_length=1_000_000,
                model_writer=stored,
                model_type=model,
                vocab_size=size,
                normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
                pad_id=0,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                pad_piece=PAD,
                unk_piece=UNK,
                control_symbols=[CLS, SEP, MASK],
                minloglevel=2,
            )
        except RuntimeError as error:
            if refused:
                raise refused[0] from None
            raise UserError(f"SentencePiece cannot learn {size} pieces from this text: {error}.") from None
        if refused:
            raise refused[0]
        return cls({MODEL: stored.getvalue()})

    def doubts(self) -> list[str]:
        """None: the model normalises text by its own rules."""
        return []

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        ids = (np.array(row, np.int32) for row in self._engine.Encode(list(texts), out_type=int))
        return [Pieces(row, self._begins[row]) for row in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[number] for number in ids).replace(_SPACE, " ").strip()
