"""bert-jax pretrain."""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import tyro

from bert_jax.config.run import Config
from bert_jax.errors import UserError
from bert_jax.masking import schedules
from bert_jax.training.pretraining import Result, pretrain, resolve

_USAGE = """usage: bert-jax pretrain EXPERIMENT.py [--section.field VALUE ...]

Pretrain a model, or go on with the run where it stopped. The experiment is a Python file with a function
config() -> bert_jax.Config; `bert-jax pretrain EXPERIMENT.py --help` lists every field with the experiment's value.
--attention is short for --model.attention.
"""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    path, overrides = Path(arguments[0]), long_names(arguments[1:])
    config = tyro.cli(
        Config,
        default=load_experiment(path),
        prog=f"bert-jax pretrain {path}",
        args=overrides,
        description=f"Pretrain the run that {path} describes.",
        registry=registry(),
    )
    # The config as it is stored, before the run begins.
    print((config := resolve(config)).to_json(), flush=True)
    result = pretrain(config)
    if result.signal:
        return 128 + result.signal
    print(report(result, config.run))
    return 0


def registry() -> tyro.constructors.ConstructorRegistry:
    """How those values are given that may be functions in Python, and text here."""
    found = tyro.constructors.ConstructorRegistry()

    @found.primitive_rule
    def text(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        kinds = get_args(info.type)
        if not any(get_origin(kind) is Callable for kind in kinds):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NUMBER|SCHEDULE" if float in kinds else "FILE",
            instance_from_str=lambda words: _read(words[0], kinds),
            is_instance=lambda value: value is None or callable(value) or isinstance(value, float | int | str),
            str_from_instance=lambda value: [str(schedules.describe(value, None))],
        )

    return found


def _read(word: str, kinds: tuple[Any, ...]) -> float | str | None:
    if type(None) in kinds and word == "None":
        return None
    if float in kinds:
        # The policy says what is wrong with other text.
        with contextlib.suppress(ValueError):
            return float(word)
    return word


def long_names(arguments: list[str]) -> list[str]:
    """Arguments with ``--attention`` written out."""
    return ["--model" + word.replace("--", ".", 1) if word.split("=")[0] == "--attention" else word for word in arguments]


def load_experiment(path: Path) -> Config:
    """Run an experiment's file and call its ``config()``.

    Raises:
      UserError: there is no such file, or no such function in it, or it returns something else.
    """
    if not path.is_file():
        raise UserError(
            f"There is no experiment {path}." if not path.is_dir() else f"{path} is a directory, not an experiment's Python file."
        )
    names = runpy.run_path(str(path))
    if "config" not in names:
        raise UserError(f"{path} has no function config(); an experiment defines one that returns a bert_jax.Config.")
    config = names["config"]()
    if not isinstance(config, Config):
        raise UserError(f"config() in {path} returns a {type(config).__name__}, not a bert_jax.Config.")
    return config


def report(result: Result, run: str) -> str:
    """What a run reached, beside what frequencies and the majority reach."""
    scores = result.held_out
    if scores is None:
        return f"{run}: step {result.step}"
    gain = scores["unigram_loss"] - scores["mlm_loss"]
    lines = [
        f"{run}: step {result.step}, held out",
        f"  masked-word loss       {scores['mlm_loss']:.3f} nats; "
        f"unigram model on the same tokens {scores['unigram_loss']:.3f}; better by {gain:.3f}",
        f"  masked-word accuracy   {scores['mlm_accuracy']:.3f}",
        f"  next-sentence accuracy {scores['nsp_accuracy']:.3f}; majority class {scores['nsp_majority']:.3f}",
        f"  curves                 {run}/curves.png",
    ]
    return "\n".join(lines)
