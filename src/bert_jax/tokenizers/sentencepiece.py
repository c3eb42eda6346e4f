"""SentencePiece vocabularies, unigram or BPE (Kudo and Richardson 2018, arXiv 1808.06226)."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Engine

from bert_jax.errors import UserError
from bert_jax.tokenizers.protocol import CLS, MASK, PAD, SEP, UNK, AlignedText, TokenizedText, find_special_tokens
from bert_jax.tokenizers.settings import CONFIG, AddedToken, Settings, add_tokens, place

MODEL = "spiece.model"
_SPACE = "▁"
_NORMAL, _BPE = 1, 2  # SentencePiece.Type.NORMAL and TrainerSpec.ModelType.BPE of sentencepiece_model.proto


class _Part(NamedTuple):
    """A part of a text between matched tokens."""

    start: int
    """Index of its first character in the text."""
    text: str
    token_id: int | None
    """Id of the token that it is, None for ordinary text."""


class SentencePiece:
    """Tokenization of raw text that treats a space as a character; a word begins where a token starts with a space.

    Args:
      files: ``spiece.model``, with the five special tokens in its vocabulary, and optionally ``tokenizer_config.json`` with other
        names of these tokens and added tokens ([`Settings`][bert_jax.tokenizers.settings.Settings]).

    Raises:
      UserError: the model cannot be read or lacks a special token.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        settings = Settings.parse(files.get(CONFIG))
        has_settings = settings.added or settings.names != Settings().names
        self.files = {name: content for name, content in files.items() if name == MODEL or (name == CONFIG and has_settings)}
        self._engine = spm.SentencePieceProcessor()
        try:
            self._engine.LoadFromSerializedProto(files[MODEL])
        except RuntimeError as error:
            raise UserError(f"{MODEL} is not a SentencePiece model: {error}.") from None
        pieces = [self._engine.IdToPiece(token_id) for token_id in range(self._engine.GetPieceSize())]
        added, self.tokens = place(settings.added, {token: token_id for token_id, token in enumerate(pieces)}, pieces)
        if any(token.single_word or token.lstrip or token.rstrip for token in added):
            raise UserError(f"{CONFIG} has added tokens with single_word, lstrip or rstrip, which need a WordPiece vocabulary.")
        # They are found in the text as it is, whatever a file says.
        added = tuple(token._replace(normalized=False) for token in added)
        self._ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        self.special_tokens = find_special_tokens(self._ids, settings.names, MODEL)
        known = {token.content for token in added}
        specials = [AddedToken(name, self._ids[name]) for name in settings.names if name not in known]
        self.settings = dataclasses.replace(settings, added=(*added, *specials))
        self.is_word_start = np.array([token.startswith(_SPACE) or token in known for token in self.tokens])

    def with_added(self, tokens: Sequence[AddedToken]) -> SentencePiece:
        """The same tokenizer with further tokens, which have ids."""
        return SentencePiece({**self.files, CONFIG: add_tokens(self.files.get(CONFIG), tokens)})

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

    def encode(self, texts: Sequence[str], *, match_special: bool = True) -> list[TokenizedText]:
        """Tokenize each text; see [`Tokenizer.encode`][bert_jax.tokenizers.protocol.Tokenizer.encode]."""
        settings = self.settings if match_special else self.settings.without_specials()
        parts = [self._split(text, settings) for text in texts]
        rows = iter(self._engine.Encode([part.text for row in parts for part in row if part.token_id is None], out_type=int))
        tokenized = []
        for row in parts:
            ids = np.array(
                [token for part in row for token in ([part.token_id] if part.token_id is not None else next(rows))], np.int32
            )
            tokenized.append(TokenizedText(ids, self.is_word_start[ids]))
        return tokenized

    def align(self, texts: Sequence[str], *, match_special: bool = True) -> list[AlignedText]:
        """Tokenize each text, with spans; see [`Tokenizer.align`][bert_jax.tokenizers.protocol.Tokenizer.align]."""
        settings = self.settings if match_special else self.settings.without_specials()
        aligned = []
        for text in texts:
            ids, spans = list[int](), list[list[int]]()
            for start, part, token_id in self._split(text, settings):
                if token_id is not None:
                    ids, spans = [*ids, token_id], [*spans, [start, start + len(part)]]
                    continue
                encoding = self._engine.Encode(part, return_type="offset_mapping")
                tokens = [self.tokens[number] for number in encoding["ids"]]
                ids += encoding["ids"]
                repaired = self._repair([*map(list, encoding["offsets"])], tokens, part)
                spans += [[start + first, start + last] for first, last in repaired]
            row = np.array(ids, np.int32)
            # Neither column may decrease.
            monotonic = np.maximum.accumulate(np.array(spans, np.int32).reshape(-1, 2), axis=0)
            aligned.append(AlignedText(row, self.is_word_start[row], monotonic))
        return aligned

    def _split(self, text: str, settings: Settings) -> list[_Part]:
        """Split a text at added and special tokens; the longest one counts where several match."""
        contents = sorted((token.content for token in settings.added), key=len, reverse=True)
        if not any(content in text for content in contents):
            return [_Part(0, text, None)]
        parts, start = [], 0
        for match in re.finditer("|".join(map(re.escape, contents)), text):
            parts += [_Part(start, text[start : match.start()], None), _Part(match.start(), match[0], self._ids[match[0]])]
            start = match.end()
        return [part for part in [*parts, _Part(start, text[start:], None)] if part.text]

    def split(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of texts in which no added and no special token is matched."""
        return [np.array(ids, np.int32) for ids in self._engine.Encode([*texts], out_type=int)]

    def to_json(self) -> bytes | None:
        """Content of a ``tokenizer.json`` that gives the same ids, None where the tokenizers library cannot give them."""
        proto = sentencepiece_model_pb2.ModelProto.FromString(self.files[MODEL])  # type: ignore[attr-defined]
        engine = Engine(_library_model(proto))
        engine.normalizer, engine.pre_tokenizer = _normalization(proto.normalizer_spec)
        engine.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        engine.add_tokens([token.to_library() for token in self.settings.added])
        _, _, cls, sep, _ = self.settings.names
        engine.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, self.special_tokens.cls), (sep, self.special_tokens.sep)],
        )
        numbers = [engine.token_to_id(token) for token in self.tokens]
        texts = [" ".join(self.tokens[start : start + 50]).replace(_SPACE, " ") for start in range(0, len(self.tokens), 50)]
        theirs = [encoding.ids for encoding in engine.encode_batch(texts, add_special_tokens=False)]
        if numbers != [*range(len(numbers))] or theirs != [row.ids.tolist() for row in self.encode(texts)]:
            return None
        return engine.to_str(pretty=True).encode()

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


def _library_model(proto: Any) -> models.Unigram | models.BPE:
    """The model of the tokenizers library with the pieces and scores of a SentencePiece model."""
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    unk = proto.trainer_spec.unk_id
    if proto.trainer_spec.model_type != _BPE:
        return models.Unigram(pieces, unk, proto.trainer_spec.byte_fallback)
    # SentencePiece merges the pair that makes the piece of the highest score; the library has a rank for each pair.
    normal = {piece.piece: (-piece.score, rank) for rank, piece in enumerate(proto.pieces) if piece.type == _NORMAL}
    merges = sorted(
        (order, piece[:cut], piece[cut:])
        for piece, order in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    )
    vocab = {piece: rank for rank, (piece, _) in enumerate(pieces)}
    return models.BPE(vocab, [(left, right) for _, left, right in merges], unk_token=pieces[unk][0], fuse_unk=True)


def _normalization(spec: Any) -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """The steps of a SentencePiece model before its tokens, in its order."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    # The library adds no space before a text that starts with the sign for one.
    steps.append(normalizers.Replace(Regex(rf"\A{_SPACE}"), _SPACE * 2))
    prefix = "always" if spec.add_dummy_prefix else "never"
    return normalizers.Sequence(steps), pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=prefix, split=False)
