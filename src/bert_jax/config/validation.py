"""Checks that dataclasses of plain values share, and their way from JSON: every refusal is one sentence."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection
from typing import Any, Literal

from etils import epath

from bert_jax.errors import UserError


def require(condition: bool, sentence: str) -> None:
    """Raise a UserError with the sentence unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def require_share(name: str, value: int | float) -> None:
    """Require 0 <= value < 1."""
    require(0.0 <= value < 1.0, f"{name} is {value}; it must be at least 0 and below 1.")


def require_positive(name: str, value: int | float) -> None:
    """Require 0 < value < 2**31."""
    require(value > 0, f"{name} is {value}; it must be greater than 0.")
    require(value < 2**31, f"{name} is {value}; it must be less than 2**31.")


def check_choices(value: Any, where: str) -> None:
    """Require that every field annotated with a Literal holds one of its values."""
    for name, hint in typing.get_type_hints(type(value)).items():
        if typing.get_origin(hint) is Literal:
            chosen, choices = getattr(value, name), typing.get_args(hint)
            require(chosen in choices, f"{where}.{name} is {chosen!r}; choose one of {', '.join(map(str, choices))}.")


_NUMBERS_AND_TEXT: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}


def check_types(values: dict[str, Any], hints: dict[str, Any], where: str) -> None:
    """Require numbers and text where annotations say so; an int may stand for a float."""
    for name, value in values.items():
        hint = hints[name]
        if type(None) in typing.get_args(hint):
            if value is None:
                continue
            # Of several kinds of value the dataclass itself says which it takes.
            hint, *others = (one for one in typing.get_args(hint) if one is not type(None))
            if others:
                continue
        wanted = _NUMBERS_AND_TEXT.get(hint)
        right = wanted is None or (isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool)))
        require(right, f"{where}.{name} is {value!r}; it must be {getattr(hint, '__name__', '')}.")


def build(cls: type, values: Any, where: str) -> Any:
    """A dataclass, and those in its fields, from a JSON object."""
    hints = typing.get_type_hints(cls)
    require(isinstance(values, dict), f"{where} is {values!r}; it must be an object.")
    unknown = sorted(set(values) - set(hints))
    require(not unknown, f"{where} has no field {', '.join(unknown)}.")
    check_types(values, hints, where)
    fields = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = build(typing.cast(type, hint), value, f"{where}.{name}")
        fields[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**fields)
    except TypeError as error:
        raise UserError(f"{where} is incomplete: {error}.") from None


def differences(stored: Any, given: Any, free: Collection[tuple[str, ...]]) -> list[str]:
    """Fields, as ``section.field: stored -> given``, in which two dataclasses differ, but for the free ones."""

    def walk(a: Any, b: Any, path: tuple[str, ...]) -> list[str]:
        if path in free:
            return []
        if dataclasses.is_dataclass(a):
            return [line for f in dataclasses.fields(a) for line in walk(getattr(a, f.name), getattr(b, f.name), (*path, f.name))]
        return [] if a == b else [f"{'.'.join(path)}: {a} -> {b}"]

    return walk(stored, given, ())


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON value; a UserError says what is wrong with it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is not JSON that can be read: it is nested too deeply.") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.") from None


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """A JSON object from a local or remote file; a UserError says what is wrong with it."""
    path = epath.Path(path)
    try:
        value = parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is a directory, not a JSON file.") from None
    require(isinstance(value, dict), f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value
