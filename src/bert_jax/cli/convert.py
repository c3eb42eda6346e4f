"""bert-jax convert."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

import bert_jax
from bert_jax.convert import REPORT, Format, Head


@dataclasses.dataclass(frozen=True)
class Convert:
    """Bring a model into another format; nothing in a file is executed, neither TensorFlow nor PyTorch is needed.

    Read are runs of ours, Hugging Face directories (model.safetensors, pytorch_model.bin, in parts or whole),
    TensorFlow checkpoints of the original (bert_model.ckpt.*, also fine-tuned or with optimizer state) and old Flax
    files (flax_model.msgpack), each with its config and vocabulary beside it. Every tensor must find its place.

    Example: bert-jax convert uncased_L-12_H-768_A-12 bert-base --to hf --verify
    """

    source: Annotated[str, tyro.conf.Positional]
    """Directory with one model, or the file of its weights."""
    target: Annotated[str, tyro.conf.Positional]
    """Directory to make."""
    to: Format
    """hf: safetensors and config.json; google: TensorFlow checkpoint and bert_config.json; flax: msgpack; orbax: a
    checkpoint of ours."""
    partial: bool = False
    """Leave out tensors that do not match and leave at their initial values parameters that are not given; both are
    named."""
    head: Head | None = None
    """What a classifier is, where the config does not say it: classify, regress, tag or choose."""
    verify: bool = False
    """Read the target again and compare every output of both on probe texts; written into the report."""


def main(arguments: list[str]) -> int:
    options = tyro.cli(Convert, prog="bert-jax convert", args=arguments)
    bert = bert_jax.load(options.source, partial=options.partial, head=options.head)
    report = bert_jax.save(bert, options.target, to=options.to, verify=options.verify)
    count, heads = len(report["tensors"]), ", ".join(report["heads"]) or "no head"
    print(f"{options.target}: {count} tensors, {heads}; listed in {REPORT}")
    for name, difference in report.get("largest_differences", {}).items():
        print(f"  {name:12}  largest difference {difference:.3g}")
    return 0
