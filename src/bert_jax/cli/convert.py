"""bert-jax convert."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

import bert_jax
from bert_jax.convert import REPORT, Format, Head


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a model to another format. No code from the files is executed; TensorFlow and PyTorch are not needed.

    The source can be a run of bert-jax, a Hugging Face directory (model.safetensors or pytorch_model.bin, also in parts), a
    TensorFlow checkpoint of the original (bert_model.ckpt.*, also fine-tuned or with optimizer state) or a file of transformers'
    former Flax classes (flax_model.msgpack), with its config and vocabulary beside it. Every tensor must have a place in the model.

    Example: bert-jax convert uncased_L-12_H-768_A-12 bert-base --to hf --verify
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Directory with one model, or the file of its weights."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """Directory to create."""
    to: Format
    """hf (safetensors), google (TensorFlow checkpoint), flax (msgpack) or orbax (a checkpoint of bert-jax)."""
    partial: bool = False
    """Leave out tensors that do not match, and keep the initial values of parameters without a tensor; a warning names both.
    At least half of the encoder has to match; heads and labels that cannot be read are left out, too."""
    head: Head | None = None
    """Head that the source's "classifier" is, if its config does not say it."""
    verify: bool = False
    """Read the target again and compare the ids of tokens and every output on probe texts.
    The format hf is also read by transformers if it is installed (pip install transformers torch), in a process of its own."""
    vocab: str | None = None
    """Directory of an extension of the model's vocabulary, made by `bert-jax vocab --extend`.
    The rows of its new tokens start as the mean of their parts."""
    added_tokens: tuple[str, ...] = ()
    """Tokens to add to the vocabulary, which are found before a text is split; each starts as the mean of its parts."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Convert, prog="bert-jax convert", args=arguments)
    bert = bert_jax.load(
        options.source, partial=options.partial, head=options.head, vocab=options.vocab, added_tokens=options.added_tokens
    )
    report = bert_jax.save(bert, options.target, to=options.to, verify=options.verify, partial=options.partial)
    count, heads = len(report["tensors"]), ", ".join(report["heads"]) or "no head"
    print(f"{options.target}: {count} tensors, {heads}; listed in {REPORT}")
    for reading in report.get("verification", ()):
        print(f"read by {reading['reader']}:")
        for name, difference in reading["largest_differences"].items():
            print(f"  {name:12}  largest difference {difference:.3g}")
    return 0
