"""Checks shared by the dataclasses of ``bert_jax.config``, and their construction from JSON."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from typing import Any, Literal

from bert_jax.errors import UserError


def require_share(name: str, value: int | float) -> None:
    """Raise a UserError unless 0 <= value < 1.

    Examples:
      >>> require_share("model.hidden_dropout_prob", 1.5)
      Traceback (most recent call last):
      bert_jax.errors.UserError: model.hidden_dropout_prob is 1.5; it must be at least 0 and below 1.
    """
    # NaN fails every comparison, so that these conditions refuse it.
    if not 0.0 <= value < 1.0:
        raise UserError(f"{name} is {value}; it must be at least 0 and below 1.")


def require_positive(name: str, value: int | float) -> None:
    """Raise a UserError unless 0 < value < 2**31."""
    if not value > 0:
        raise UserError(f"{name} is {value}; it must be greater than 0.")
    if not value < 2**31:
        raise UserError(f"{name} is {value}; it must be less than 2**31.")


def check_choices(config: Any, where: str) -> None:
    """Raise a UserError unless every field annotated with a Literal holds one of its values.

    Args:
      config: a dataclass.
      where: its name in the error message.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            value, choices = getattr(config, name), typing.get_args(hint)
            if value not in choices:
                raise UserError(f"{where}.{name} is {value!r}; choose one of {', '.join(map(str, choices))}.")


_SCALARS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}


def check_types(values: dict[str, Any], hints: dict[str, Any], where: str) -> None:
    """Raise a UserError unless numbers and strings have the annotated types; an int may stand for a float.

    Args:
      values: fields of a JSON object.
      hints: the annotation of each field.
      where: the object's name in the error message.
    """
    for name, value in values.items():
        hint = hints[name]
        if type(None) in typing.get_args(hint):
            if value is None:
                continue
            hint, *alternatives = (option for option in typing.get_args(hint) if option is not type(None))
            if alternatives:
                # The dataclass itself checks a field that takes several types.
                continue
        types = _SCALARS.get(hint)
        # bool is a subclass of int.
        valid = types is None or (isinstance(value, types) and (bool in types or not isinstance(value, bool)))
        if not valid:
            raise UserError(f"{where}.{name} is {value!r}; it must be {getattr(hint, '__name__', '')}.")


def build(cls: type, values: Any, where: str) -> Any:
    """Build a dataclass, and the dataclasses in its fields, from a JSON object.

    Args:
      cls: the dataclass.
      values: the parsed JSON object.
      where: its name in error messages.

    Raises:
      UserError: a field is unknown, missing, of another type, or refused by the dataclass.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}; it must be a JSON object.")
    if unknown := sorted(set(values) - set(hints)):
        raise UserError(f"{where} has no field {', '.join(unknown)}; its fields: {', '.join(hints)}.")
    check_types(values, hints, where)
    fields = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = build(typing.cast(type, hint), value, f"{where}.{name}")
        elif isinstance(value, list) and dataclasses.is_dataclass(item := typing.get_args(hint)[0]):
            value = [build(typing.cast(type, item), part, f"{where}.{name}[{index}]") for index, part in enumerate(value)]
        fields[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**fields)
    except TypeError as error:
        raise UserError(f"{where} is incomplete: {error}.") from None


def differences(stored: Any, config: Any, free: Collection[tuple[str, ...]]) -> list[str]:
    """Fields in which two dataclasses differ, as ``section.field: stored -> new``.

    Args:
      stored: the config of an earlier start.
      config: the new config.
      free: paths of fields that may differ.

    Examples:
      >>> differences(bert_jax.MeshConfig(), bert_jax.MeshConfig(fsdp=2), free=())
      ['fsdp: 1 -> 2']
    """

    def walk(old: Any, new: Any, path: tuple[str, ...]) -> list[str]:
        if path in free:
            return []
        if dataclasses.is_dataclass(old):
            names = [field.name for field in dataclasses.fields(old)]
            return [line for name in names for line in walk(getattr(old, name), getattr(new, name), (*path, name))]
        return [] if old == new else [f"{'.'.join(path)}: {old} -> {new}"]

    return walk(stored, config, ())
