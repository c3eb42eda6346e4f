"""bert-jax presets."""

from __future__ import annotations

import dataclasses
import json

import tyro

from bert_jax.recipes.presets import CHOICES, PRESETS

_WIDTH = 18


@dataclasses.dataclass(frozen=True)
class Presets:
    """Print what other programs compute differently, as fields of a config.

    `bert-jax pretrain EXPERIMENT --preset NAME` sets all of them; options win over a preset. Values that differ from those of
    google2018, the original's first release, have a star. Learning rates, lengths, sizes, dropout and weight decay belong to
    recipes, and are in no preset.

    Example: bert-jax presets
    """

    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Presets, prog="bert-jax presets", args=arguments)
    if options.json:
        print(
            json.dumps(
                [choice._asdict() | {"values": dict(zip(PRESETS, choice.values, strict=True))} for choice in CHOICES], indent=2
            )
        )
        return 0
    names = {choice.name: choice.field or choice.name for choice in CHOICES}
    width = max(map(len, names.values())) + 2
    print(f"{'':{width}}" + "".join(f"{name:{_WIDTH}}" for name in PRESETS).rstrip())
    for choice in CHOICES:
        shown = [f"{value}{'' if value == choice.values[0] else ' *'}" for value in choice.values]
        print(f"{names[choice.name]:{width}}" + "".join(f"{text:{_WIDTH}}" for text in shown).rstrip())
        if choice.note:
            print(f"{'':{width}}({choice.note})")
    return 0
