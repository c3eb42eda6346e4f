"""SentencePiece vocabularies, unigram or BPE (Kudo and Richardson 2018)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import sentencepiece as spm

from bert_jax.errors import UserError
from bert_jax.tokenizers.protocol import CLS, MASK, PAD, SEP, UNK, Aligned, Pieces, find_specials

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

    def align(self, texts: Sequence[str]) -> list[Aligned]:
        aligned = []
        for text, found in zip(texts, self._engine.Encode(list(texts), return_type="offset_mapping"), strict=True):
            ids = np.array(found["ids"], np.int32)
            spans = [*map(list, found["offsets"])]
            end = len(text)
            for number in reversed(range(len(spans))):
                span, piece = spans[number], self.pieces[ids[number]]
                if span[0] < span[1]:
                    end = span[1]
                elif piece != _SPACE:
                    # Of the pieces of one character the library gives all of it to the last.
                    span[1] = end
                # What became the space that a piece begins with.
                while piece.startswith(_SPACE) and span[0] < span[1] and _is_space(text[span[0]]):
                    span[0] += 1
            places = np.array(spans, np.int32).reshape(-1, 2)
            aligned.append(Aligned(ids, self._begins[ids], np.maximum.accumulate(places, axis=0)))
        return aligned

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[number] for number in ids).replace(_SPACE, " ").strip()


def _is_space(letter: str) -> bool:
    return letter == " " or not letter.isprintable()
