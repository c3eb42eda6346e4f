"""Numbers that change in the course of a run: written as a number, as text, or as a function of the step."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax.config.validation import require
from bert_jax.errors import UserError

Number = float | str | Callable[..., Any]
"""A constant; text such as "linear(0.3, 0.15)"; or a function of the step, an Optax schedule for one. A function with a parameter
``loss`` is also given the run's masked-word loss of late."""

_TEXT = re.compile(r"\s*([a-z_]+)\s*\(([^()]*)\)\s*")
FUNCTION = "function "
"""What the text begins with that stands for a function where a config is stored."""
MOST = 16.0
"""The loss that a schedule is given at most, in nats: up to it schedules are looked at before a run, every quarter nat."""
_LOSSES = np.linspace(0.0, MOST, 65, dtype=np.float32)
# Steps at which a function of the loss is looked at; one of the step alone is looked at everywhere.
_STEPS = 64
_NAMED = 17


class Shape(NamedTuple):
    """A schedule that has a name."""

    read: Callable[..., Array]
    """(share of the run that is done, loss, its numbers) -> the value."""
    numbers: str
    """What its numbers are called."""
    fewest: int
    most: int | None = None
    """How many numbers it takes; None: any number."""


def _steps(done: Array, loss: Array | None, *values: float) -> Array:
    return jnp.asarray(values)[jnp.minimum((done * len(values)).astype(jnp.int32), len(values) - 1)]


def _cyclic(done: Array, loss: Array | None, begin: float, middle: float, cycles: float) -> Array:
    return middle + (begin - middle) * jnp.abs(1 - 2 * ((done * cycles) % 1.0))


def _adaptive(done: Array, loss: Array, begin: float, end: float, high: float, low: float) -> Array:
    return end + (begin - end) * jnp.clip((loss - low) / (high - low), 0.0, 1.0)


SHAPES = {
    "linear": Shape(lambda done, loss, begin, end: begin + (end - begin) * done, "begin, end", 2, 2),
    "cosine": Shape(lambda done, loss, begin, end: end + (begin - end) * (1 + jnp.cos(jnp.pi * done)) / 2, "begin, end", 2, 2),
    "steps": Shape(_steps, "first, second, ...", 2),
    "cyclic": Shape(_cyclic, "begin, middle, cycles", 3, 3),
    "adaptive": Shape(_adaptive, "begin, end, high, low", 4, 4),
}
"""``linear`` and ``cosine`` go from one value to the other over the whole run; ``steps`` gives each value an equal stretch of it;
``cyclic`` goes from one value to the other and back, ``cycles`` times; ``adaptive`` is ``begin`` while the masked-word loss is at
least ``high`` nats and ``end`` once it is at most ``low``, in proportion between them."""


def parse(name: str, text: str) -> tuple[Shape, tuple[float, ...]]:
    """The named schedule that a text means, and its numbers.

    Args:
      name: what the number is called where it is refused.
      text: such as "linear(0.3, 0.15)".

    Raises:
      UserError: the text is none.
    """
    if text.startswith(FUNCTION):
        raise UserError(f"{name} was a function of Python's, of which only {text!r} is stored; give the function itself again.")
    known = "; ".join(f"{shape}({SHAPES[shape].numbers})" for shape in SHAPES)
    found = _TEXT.fullmatch(text)
    require(found is not None and found[1] in SHAPES, f"{name} is {text!r}; give a number, or one of {known}.")
    assert found is not None
    shape = SHAPES[found[1]]
    try:
        numbers = tuple(float(word) for word in found[2].split(","))
    except ValueError:
        raise UserError(f"{name} is {text!r}; what stands between its brackets must be numbers: {shape.numbers}.") from None
    right = shape.fewest <= len(numbers) and (shape.most is None or len(numbers) <= shape.most)
    require(right, f"{name} is {text!r}; its numbers are {shape.numbers}.")
    require(all(map(math.isfinite, numbers)), f"{name} is {text!r}; its numbers must be finite.")
    if found[1] == "adaptive":
        require(numbers[2] > numbers[3], f"{name} is {text!r}; the loss falls, so that high must be above low.")
    if found[1] == "cyclic":
        require(numbers[2] > 0, f"{name} is {text!r}; cycles must be greater than 0.")
    return shape, numbers


def changes(number: Number) -> bool:
    """Whether a number is anything but a constant."""
    return isinstance(number, str) or callable(number)


def follows_loss(number: Number) -> bool:
    """Whether a number depends on the loss."""
    if isinstance(number, str):
        return number.strip().startswith("adaptive")
    return callable(number) and "loss" in _parameters(number)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        # Of some built-in callables Python does not know.
        return ()


def value(
    number: Number, step: Int[Array, ""] | int, steps: int | None, loss: Float[Array, ""] | float | None = None
) -> float | Float[Array, ""]:
    """A number at a step: a float for a constant, else a float32 scalar.

    Args:
      number: what is read.
      step: of the run, from 0.
      steps: the schedule's; what it is at the end it stays.
      loss: the masked-word loss of late, in nats, for what depends on it; it is not told more than :data:`MOST`.

    Raises:
      UserError: the number needs ``steps`` or ``loss``, or is a function that cannot be compiled.
    """
    if isinstance(number, str):
        shape, numbers = parse("The schedule", number)
        require(steps is not None, f"The schedule {number!r} runs over a number of steps; say how many with steps=.")
        _require_loss(number, loss)
        done = jnp.clip(jnp.asarray(step, jnp.float32) / jnp.float32(steps), 0.0, 1.0)
        return jnp.asarray(shape.read(done, loss, *numbers), jnp.float32)
    if not callable(number):
        return float(number)
    _require_loss(number, loss)
    step = step if steps is None else jnp.minimum(step, steps)
    try:
        found = number(step, loss=jnp.clip(loss, 0.0, MOST)) if follows_loss(number) else number(step)
        return jnp.asarray(found, jnp.float32).reshape(())
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        raise UserError(
            f"{name_of(number)} cannot be compiled, since it asks Python about the value of the step; use jnp.where instead of if."
        ) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{name_of(number)} is no function of the step that gives a number: {error}.") from None


def _require_loss(number: Number, loss: Float[Array, ""] | float | None) -> None:
    if loss is None and follows_loss(number):
        raise UserError(f"The schedule {describe(number, None)} depends on the loss, which is not known here.")


def table(numbers: Sequence[Number], steps: int | None) -> Float[np.ndarray, "K N"]:
    """Values that numbers take together in a run: in each column those of one step, the one after the last included.

    Where one depends on the loss, in each column those of one step and one loss, of some steps and losses.

    Raises:
      UserError: as :func:`value`; a number changes and ``steps`` is None.
    """
    if not any(map(changes, numbers)):
        return np.array([[value(number, 0, steps)] for number in numbers], np.float32)
    if steps is None:
        raise UserError("The mask policy has schedules and no steps; say over how many they run, with dataclasses.replace.")

    def at(step: Array, loss: Array) -> list[Array]:
        return [jnp.asarray(value(number, step, steps, loss), jnp.float32) for number in numbers]

    # A policy is read while a step is traced; what it is there does not depend on what is traced.
    with jax.ensure_compile_time_eval():
        if any(map(follows_loss, numbers)):
            some = np.unique(np.linspace(0, steps, _STEPS).astype(np.int32))
            found = jax.vmap(jax.vmap(at, (None, 0)), (0, None))(jnp.asarray(some), jnp.asarray(_LOSSES))
        else:
            found = jax.vmap(at, (0, None))(jnp.arange(steps + 1), jnp.float32(0))
        return np.stack([np.ravel(each) for each in found])


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called where it is defined."""
    return str(getattr(function, "__qualname__", type(function).__name__))


def describe(number: Number | None, steps: int | None) -> float | str | None:
    """How a number is stored: as it is written, a function by its name and some of its values."""
    if not callable(number):
        return number
    return FUNCTION + name_of(number) if steps is None else FUNCTION + told(number, table([number], steps)[0])


def told(function: Callable[..., Any], values: np.ndarray) -> str:
    """A function by its name, some of its values, and the mean of all, by which one is told from another."""
    some = values[np.linspace(0, values.size - 1, _NAMED).astype(int)]
    return f"{name_of(function)}: {', '.join(f'{each:.6g}' for each in some)}; mean {values.mean(dtype=np.float64):.6g}"
