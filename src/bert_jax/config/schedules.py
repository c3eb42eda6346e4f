"""Numbers that may change during a run: constants, text such as "linear(0.3, 0.15)", or functions of the step.

This module defines how schedules are written, checked and identified; ``bert_jax.masking.schedules`` evaluates them.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError

Schedule = float | str | Callable[..., Any]
"""A constant; text that names one of ``FORMS``; or a function of the step, such as an Optax schedule. A function with a
parameter ``loss`` also receives the exponential moving average of the run's MLM loss."""

FUNCTION = "function "
"""Prefix of the text that represents a function in a stored config."""

_TEXT = re.compile(r"\s*([a-z_]+)\s*\(([^()]*)\)\s*")


class Form(NamedTuple):
    """A named schedule: what its arguments are called, and how many it takes."""

    arguments: str
    minimum: int
    maximum: int | None = None
    """None: no limit."""


FORMS = {
    "linear": Form("begin, end", 2, 2),
    "cosine": Form("begin, end", 2, 2),
    "steps": Form("first, second, ...", 2),
    "cyclic": Form("begin, middle, cycles", 3, 3),
    "adaptive": Form("begin, end, high, low", 4, 4),
}
"""``linear`` and ``cosine`` interpolate over the whole run; ``steps`` holds each value for an equal part of it; ``cyclic``
goes from ``begin`` to ``middle`` and back, ``cycles`` times; ``adaptive`` is ``begin`` while the MLM loss is at least
``high`` nats, ``end`` once it is at most ``low``, and linear in the loss between them."""


def parse(name: str, text: str) -> tuple[str, tuple[float, ...]]:
    """Parse a named schedule.

    Args:
      name: what the number is called in error messages.
      text: such as "linear(0.3, 0.15)".

    Returns:
      A key of ``FORMS`` and the arguments.

    Raises:
      UserError: the text is not a schedule.

    Examples:
      >>> parse("mask.rate", "linear(0.3, 0.15)")
      ('linear', (0.3, 0.15))
    """
    if text.startswith(FUNCTION):
        raise UserError(f"{name} was a Python function, of which a stored config holds only {text!r}; pass the function again.")
    match = _TEXT.fullmatch(text)
    if match is None or match[1] not in FORMS:
        known = "; ".join(f"{form}({FORMS[form].arguments})" for form in FORMS)
        raise UserError(f"{name} is {text!r}; give a number, or one of {known}.")
    form = FORMS[match[1]]
    try:
        arguments = tuple(float(word) for word in match[2].split(","))
    except ValueError:
        raise UserError(f"{name} is {text!r}; the arguments in brackets must be numbers: {form.arguments}.") from None
    if len(arguments) < form.minimum or (form.maximum is not None and len(arguments) > form.maximum):
        raise UserError(f"{name} is {text!r}; its arguments are {form.arguments}.")
    if not all(map(math.isfinite, arguments)):
        raise UserError(f"{name} is {text!r}; its arguments must be finite.")
    if match[1] == "adaptive" and arguments[2] <= arguments[3]:
        raise UserError(f"{name} is {text!r}; the loss falls during training, so high must be above low.")
    if match[1] == "cyclic" and arguments[2] <= 0:
        raise UserError(f"{name} is {text!r}; cycles must be greater than 0.")
    return match[1], arguments


def varies(schedule: Schedule) -> bool:
    """Whether a schedule is anything but a constant."""
    return isinstance(schedule, str) or callable(schedule)


def depends_on_loss(schedule: Schedule) -> bool:
    """Whether a schedule is a function of the loss."""
    if isinstance(schedule, str):
        return schedule.strip().startswith("adaptive")
    return callable(schedule) and "loss" in _parameters(schedule)


def name_of(function: Callable[..., Any]) -> str:
    """Qualified name of a function, or the type of another callable."""
    return str(getattr(function, "__qualname__", type(function).__name__))


def identity(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """Text that is equal for two functions only if they compute the same: a name, and a digest of the lowered program.

    The digest covers the function's StableHLO, constants and closed-over arrays included. A newer JAX may lower the same
    function to another program; a run that is resumed with it is then refused, which is the safe error.

    Args:
      function: a function that JAX can compile.
      arguments, keywords: arrays of the shapes and dtypes it is called with.
    """
    program = jax.jit(function).trace(*arguments, **keywords).lower(lowering_platforms=("cpu",)).as_text()
    # The module is named after the function; the digest is of what it computes.
    body = program.partition("\n")[2]
    return f"{FUNCTION}{name_of(function)} {hashlib.blake2b(body.encode(), digest_size=8).hexdigest()}"


def stored(schedule: Schedule | None) -> float | str | None:
    """How a stored config represents a schedule: as written, or a function by its ``identity``."""
    if not callable(schedule):
        return schedule
    loss = {"loss": jnp.float32(0)} if depends_on_loss(schedule) else {}
    try:
        return identity(schedule, jnp.int32(0), **loss)
    except (TypeError, ValueError):
        # Functions that cannot be compiled are refused, with the reason, when their values are checked.
        return FUNCTION + name_of(schedule)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        # Some built-in callables have no signature.
        return ()
