"""SentencePiece vocabularies, unigram or BPE (Kudo and Richardson 2018, arXiv 1808.06226)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import sentencepiece as spm

from bert_jax.errors import UserError
from bert_jax.tokenizers.protocol import CLS, MASK, PAD, SEP, UNK, AlignedText, TokenizedText, find_special_tokens

MODEL = "spiece.model"
_SPACE = "▁"


class SentencePiece:
    """Tokenization of raw text that treats a space as a character; a word begins where a token starts with a space.

    Args:
      files: ``spiece.model``, with the five special tokens in its vocabulary.

    Raises:
      UserError: the model cannot be read or lacks a special token.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {MODEL: files[MODEL]}
        self._engine = spm.SentencePieceProcessor()
        try:
            self._engine.LoadFromSerializedProto(files[MODEL])
        except RuntimeError as error:
            raise UserError(f"{MODEL} is not a SentencePiece model: {error}.") from None
        self.tokens = [self._engine.IdToPiece(token_id) for token_id in range(self._engine.GetPieceSize())]
        self.special_tokens = find_special_tokens(self.tokens, MODEL)
        self._is_word_start = np.array([token.startswith(_SPACE) for token in self.tokens])

    @classmethod
    def train(
        cls, texts: Callable[[], Iterable[str]], size: int, *, model: Literal["unigram", "bpe"], lowercase: bool
    ) -> SentencePiece:
        """Learn a vocabulary of ``size`` tokens that starts with the special tokens.

        Raises:
          UserError: the text is too small for so many tokens.
        """
        stored = io.BytesIO()
        errors: list[UserError] = []

        def sentences() -> Iterator[str]:
            # The library would wrap an error in the text into a message about itself.
            try:
                yield from texts()
            except UserError as error:
                errors.append(error)

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
            if errors:
                raise errors[0] from None
            raise UserError(f"SentencePiece cannot learn {size} tokens from this text: {error}.") from None
        if errors:
            raise errors[0]
        return cls({MODEL: stored.getvalue()})

    def warnings(self) -> list[str]:
        """Return no warnings: the model contains its own normalization rules."""
        return []

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize each text; see [`Tokenizer.encode`][bert_jax.tokenizers.protocol.Tokenizer.encode]."""
        rows = (np.array(row, np.int32) for row in self._engine.Encode(list(texts), out_type=int))
        return [TokenizedText(ids, self._is_word_start[ids]) for ids in rows]

    def align(self, texts: Sequence[str]) -> list[AlignedText]:
        """Tokenize each text, with spans; see [`Tokenizer.align`][bert_jax.tokenizers.protocol.Tokenizer.align]."""
        aligned = []
        for text, encoding in zip(texts, self._engine.Encode(list(texts), return_type="offset_mapping"), strict=True):
            ids = np.array(encoding["ids"], np.int32)
            spans = self._repair([*map(list, encoding["offsets"])], [self.tokens[token_id] for token_id in ids], text)
            # Neither column may decrease.
            monotonic = np.maximum.accumulate(np.array(spans, np.int32).reshape(-1, 2), axis=0)
            aligned.append(AlignedText(ids, self._is_word_start[ids], monotonic))
        return aligned

    @staticmethod
    def _repair(spans: list[list[int]], tokens: list[str], text: str) -> list[list[int]]:
        """Correct the library's spans of characters that become several tokens, and exclude spaces before a word."""
        end = len(text)
        for span, token in zip(reversed(spans), reversed(tokens), strict=True):
            if span[0] < span[1]:
                end = span[1]
            elif token != _SPACE:
                # The library assigns a character that becomes several tokens to the last of them only.
                span[1] = end
            # Characters that became the space with which the token starts.
            while token.startswith(_SPACE) and span[0] < span[1] and _is_space(text[span[0]]):
                span[0] += 1
        return spans

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return "".join(self.tokens[token_id] for token_id in ids).replace(_SPACE, " ").strip()


def _is_space(character: str) -> bool:
    return character == " " or not character.isprintable()
