"""bert-jax pretrain."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import tyro

from bert_jax.config import schedules
from bert_jax.config.run import Config
from bert_jax.errors import UserError
from bert_jax.recipes import budget, presets, python_files
from bert_jax.training.pretraining import Result, pretrain, resolve

_Options = TypeVar("_Options")

_USAGE = """usage: bert-jax pretrain EXPERIMENT.py[:FUNCTION] [--preset NAME] [--hours HOURS] [--section.field VALUE ...]

Pretrain a model, or resume its run. The same command resumes a run that was stopped.

EXPERIMENT.py is a Python file with a function config() -> bert_jax.Config. Every field of the config is an option:
`bert-jax pretrain EXPERIMENT.py --help` lists them with the values of the experiment. The resulting config is printed and stored
in the run directory. --attention is short for --model.attention. --preset sets the arithmetic of another program, such as
google2018 or nvidia, before other options are applied; `bert-jax presets` lists them. --hours measures the speed of a step, and
gives the run as many steps as take so many hours; warm-up and phases keep their shares.

A recipe may have variants, such as laptop() for two CPU cores: EXPERIMENT.py:laptop.

Example: bert-jax pretrain experiments/quickstart.py --optim.peak-lr 3e-4 --mask.rate "linear(0.3, 0.15)"
"""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if not arguments or arguments[0].startswith("-"):
        return print_usage(_USAGE, arguments)
    path, *options = arguments
    description = (
        f"Pretrain with the config of {path}, or resume its run. `bert-jax pretrain --help` explains --preset and --hours."
    )
    found, options = _shortcuts(options)
    default = load_experiment(path)
    if found.preset is not None:
        default = presets.apply(default, found.preset)
    config = parse(default, options, prog=f"bert-jax pretrain {path}", description=description)
    if found.hours is not None:
        config = budget.within(config, found.hours)
    # The config as it is stored is printed before the run starts.
    print((config := resolve(config)).to_json(), flush=True)
    result = pretrain(config)
    if result.signal:
        return 128 + result.signal
    print(report(result, config.run))
    return 0


def _shortcuts(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options that are no fields of a config, and the other arguments.

    Raises:
      UserError: hours is not a number.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", const="")
    parser.add_argument("--hours", nargs="?", const="")
    found, rest = parser.parse_known_args(arguments)
    if found.hours is not None:
        try:
            found.hours = float(found.hours)
        except ValueError:
            raise UserError(f"--hours is {found.hours!r}; give a number of hours such as 24 or 0.5.") from None
    return found, rest


def print_usage(usage: str, arguments: list[str]) -> int:
    """Print the usage of a command whose first argument must be a config, and return the exit status."""
    is_help = bool(arguments) and arguments[0] in ("-h", "--help")
    print(usage, end="", file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else 2


def parse(default: _Options, arguments: list[str], *, prog: str, description: str | None = None) -> _Options:
    """Return options of a command, among them those of a config.

    Args:
      default: values without arguments.
      arguments: those of the command, without the config's path.
      prog: the command, for its help.
      description: what it does; None: the docstring of ``default``.
    """
    # --attention is short for --model.attention.
    arguments = ["--model" + word.replace("--", ".", 1) if word.split("=")[0] == "--attention" else word for word in arguments]
    return tyro.cli(type(default), default=default, prog=prog, args=arguments, description=description, registry=_callable_fields())


def _callable_fields() -> tyro.constructors.ConstructorRegistry:
    """Return rules for the command-line form of fields that can be functions in Python: a number, a schedule or a file name."""
    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def callable_fields(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        types = get_args(info.type)
        if not any(get_origin(option) is Callable for option in types):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NUMBER|SCHEDULE" if float in types else "FILE",
            instance_from_str=lambda words: _parse(words[0], types),
            is_instance=lambda value: value is None or callable(value) or isinstance(value, float | int | str),
            # A function is named without its digest, which needs JAX's devices, before the run has joined its processes.
            str_from_instance=lambda value: [schedules.name_of(value) if callable(value) else str(value)],
        )

    return rules


def _parse(word: str, types: tuple[Any, ...]) -> float | str | None:
    if type(None) in types and word == "None":
        return None
    if float in types:
        # MaskPolicy checks text that is not a number.
        with contextlib.suppress(ValueError):
            return float(word)
    return word


def load_experiment(name: str | Path) -> Config:
    """Run an experiment's file and call its ``config()``, or another function of it: ``FILE.py:FUNCTION``.

    Raises:
      UserError: the file does not exist, is not Python, raises an exception, or does not define the function, or the function does
        not return a [`Config`][bert_jax.config.Config].
    """
    file, _, function = str(name).partition(".py:")
    path = Path(f"{file}.py" if function else name)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name the Python file of an experiment.")
    if not path.is_file():
        raise UserError(f"There is no experiment {path}.")
    return python_files.call(path, f"{function or 'config'}()", Config)


def load_config(path: Path) -> Config:
    """The config of an experiment's file, or of the ``config.json`` of a run.

    Raises:
      UserError: as ``load_experiment``.
    """
    return Config.from_json(path.read_text()) if path.suffix == ".json" and path.is_file() else load_experiment(path)


def report(result: Result, run: str) -> str:
    """Return the held-out scores of a run, with those of a unigram model and of the majority class for comparison."""
    scores = result.held_out
    if scores is None:
        return f"{run}: step {result.step}"
    gain = scores["unigram_loss"] - scores["mlm_loss"]
    comparison = f"lower by {gain:.3f}" if gain >= 0 else f"higher by {-gain:.3f}"
    lines = [
        f"{run}: step {result.step}, held out",
        f"  MLM loss      {scores['mlm_loss']:.3f} nats; unigram model on the same tokens {scores['unigram_loss']:.3f}; "
        f"{comparison}",
        f"  MLM accuracy  {scores['mlm_accuracy']:.3f}",
    ]
    if "nsp_accuracy" in scores:
        lines.append(f"  NSP accuracy  {scores['nsp_accuracy']:.3f}; majority class {scores['nsp_majority']:.3f}")
    return "\n".join([*lines, f"  curves        {run}/curves.png"])
