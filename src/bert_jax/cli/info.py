"""bert-jax info."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import jax
import tyro

import bert_jax
from bert_jax.inference.bert import Bert
from bert_jax.models.heads import heads_of
from bert_jax.tokenizers import SentencePiece, WordPiece
from bert_jax.training.goodput import read_goodput

# Names of a list that are printed; --json has all.
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Info:
    """Describe a model: its shape, heads, labels and tokenizer, how it embeds texts, and what could not be read.

    Of a run, also its goodput: the share of the time since its first start that trained the model, and what the rest was lost to.

    Example: bert-jax info all-MiniLM-L6-v2
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Info, prog="bert-jax info", args=arguments)
    description = describe(bert_jax.load(options.model)) | {"goodput": read_goodput(options.model)}
    if options.json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
        return 0
    for name, value in description.items():
        if not isinstance(value, dict):
            print(f"{name}: {_text(value)}")
        elif value:
            print(f"{name}:")
            print("".join(f"  {key}: {_text(entry)}\n" for key, entry in value.items()), end="")
    return 0


def describe(bert: Bert) -> dict[str, Any]:
    """What the files of a model say, as JSON values."""
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(bert.params)),
        "config": dataclasses.asdict(bert.config),
        "pooler": "pooler" in bert.params["bert"],
        "heads": heads_of(bert.params),
        "labels": list(bert.labels),
        "tokenizer": _describe_tokenizer(bert),
        "embedding": bert.embedding.describe() if bert.embedding else None,
        "problems": dict(bert.problems),
    }


def _describe_tokenizer(bert: Bert) -> dict[str, Any] | None:
    tokenizer = bert.tokenizer
    if not isinstance(tokenizer, WordPiece | SentencePiece):
        return None
    settings = tokenizer.settings
    # The normalization of a SentencePiece model lies in its file.
    rules = {
        "do_lower_case": settings.do_lower_case,
        "strip_accents": settings.strip_accents,
        "tokenize_chinese_chars": settings.tokenize_chinese_chars,
        "clean_text": settings.clean_text,
        "max_input_chars_per_word": settings.max_word_length,
    }
    return {
        "kind": type(tokenizer).__name__,
        "tokens": len(tokenizer.tokens),
        **(rules if isinstance(tokenizer, WordPiece) else {}),
        "special_tokens": dict(zip(tokenizer.special_tokens._fields, settings.names, strict=True)),
        "added_tokens": {token.content: token.id for token in settings.added if token.content not in settings.names},
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = value if len(value) <= _LISTED else [*value[:_LISTED], f"and {len(value) - _LISTED:,} more"]
        return "; ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return _text([f"{key} {entry}" for key, entry in value.items()])
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)
