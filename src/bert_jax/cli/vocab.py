"""bert-jax vocab."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import tyro
from etils import epath

from bert_jax import convert, tokenizers
from bert_jax.config.validation import require_positive
from bert_jax.data.readers import Sentences, read_documents
from bert_jax.errors import UserError
from bert_jax.tokenizers import Extension
from bert_jax.tokenizers.settings import ORIGINAL_MAX_WORD_LENGTH
from bert_jax.tokenizers.wordpiece import WordPiece

# Tokens that are shown of an extension.
_SHOWN = 10
# What the old vocabulary decides.
_NOT_WITH_EXTEND = ("size", "kind", "lowercase", "no-lowercase", "max-word-length")


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Learn a vocabulary from text, or extend one, and write it as a directory.

    WordPiece writes vocab.txt and tokenizer_config.json, which BERT tokenizers of other libraries read; SentencePiece (unigram or
    bpe) writes spiece.model. [PAD], [UNK], [CLS], [SEP] and [MASK] get the first ids.

    With --extend OLD --add N, a WordPiece vocabulary keeps its tokens, ids and rules, and gets up to N tokens that it lacks, those
    that make the text shortest: first in the unused slots of OLD ([unused0], [unused1], ...), then at its end. A model
    of OLD gets them by the option --vocab of `bert-jax convert` or `bert-jax finetune`.

    Example: bert-jax vocab wiki.txt --out vocab --kind wordpiece --size 30522

    Example: bert-jax vocab domain.txt --extend bert-base-uncased --add 1000 --out larger
    """

    text: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]", help_behavior_hint="(required)")
    ]
    """Files, patterns, directories, or data sets of TFDS, as for `bert-jax prepare`; they are read twice for WordPiece."""
    out: str
    """Directory to create."""
    kind: tokenizers.Kind = "wordpiece"
    """Algorithm; unigram and bpe are SentencePiece models."""
    size: int = 30522
    """Number of tokens, special tokens included."""
    lowercase: bool = True
    """Fold case; WordPiece then also strips accents."""
    max_word_length: int = ORIGINAL_MAX_WORD_LENGTH
    """WordPiece: characters above which a word becomes [UNK]; 100 in transformers and in the original's first release."""
    extend: str | None = None
    """Directory with vocab.txt or tokenizer.json, or a model, whose vocabulary is extended instead of learning a new one."""
    add: int | None = None
    """Number of new tokens, with --extend."""
    sentences: Sentences = "auto"
    """Sentence boundaries: lines (one sentence per line), split (of running text), auto (lines in text files, else split)."""
    language: str = "en"
    """Language of the sentence splitter, an ISO 639 code."""
    field: str = "text"
    """Field of .jsonl and .parquet records that contains the text."""

    def __post_init__(self) -> None:
        if not self.text:
            raise UserError("No text is given; name one or more files.")
        if self.extend is None and self.add is not None:
            raise UserError("--add is the number of tokens that --extend adds; set the size of a new vocabulary with --size.")
        if self.extend is not None and self.add is None:
            raise UserError("--extend needs the number of new tokens; give it with --add.")
        if self.add is not None:
            require_positive("--add", self.add)
        require_positive("--max-word-length", self.max_word_length)
        if self.kind != "wordpiece" and self.max_word_length != ORIGINAL_MAX_WORD_LENGTH:
            raise UserError("--max-word-length is for WordPiece; SentencePiece has no longest word.")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Vocab, prog="bert-jax vocab", args=arguments)
    out = epath.Path(options.out)
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name.")

    def texts() -> Iterator[str]:
        documents = read_documents(options.text, sentences=options.sentences, language=options.language, field=options.field)
        return (sentence for document in documents for sentence in document)

    if options.extend is not None and options.add is not None:
        given = {word.partition("=")[0].removeprefix("--").replace("_", "-") for word in arguments if word.startswith("--")}
        if refused := [name for name in _NOT_WITH_EXTEND if name in given]:
            raise UserError(f"--{refused[0]} is for a new vocabulary; leave it out, --extend needs only --add.")
        extension = tokenizers.extend(convert.read_tokenizer(options.extend), texts(), options.add)
        tokenizers.create(extension.tokenizer, out, exported=True)
        print("\n".join(_report(out, extension)))
        return 0
    tokenizer = tokenizers.train(texts, kind=options.kind, size=options.size, lowercase=options.lowercase)
    if isinstance(tokenizer, WordPiece):
        tokenizer = tokenizer.with_max_word_length(options.max_word_length)
    tokenizers.create(tokenizer, out)
    size = len(tokenizer.tokens)
    print(f"{out}: {options.kind}, {size:,} tokens{', all that the text has' if size < options.size else ''}")
    return 0


def _report(out: epath.Path, extension: Extension) -> list[str]:
    new, before, after = len(extension.tokens), extension.before, extension.after
    words = extension.words - before.unknown
    lines = [
        f"{out}: wordpiece, {len(extension.tokenizer.tokens):,} tokens, {new:,} of them new: {extension.reused:,} in unused slots, "
        f"{new - extension.reused:,} at the end",
        f"tokens per word: {before.tokens / words:.3f} before, {after.tokens / words:.3f} now" if words else "",
        f"unknown words: {before.unknown:,} of {extension.words:,} before, {after.unknown:,} now" if before.unknown else "",
        f"first new tokens: {' '.join(extension.tokens[:_SHOWN])}" if new else "",
    ]
    return [line for line in lines if line]
