"""Tables that say which tokens are likelier to be masked: by their frequency, or by the PMI of two that stand side by side."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from bert_jax import ops
from bert_jax.config.validation import require
from bert_jax.errors import UserError
from bert_jax.masking import schedules
from bert_jax.models.encoder import Batch


def read_weights(path: epath.PathLike, pieces: Sequence[str]) -> Callable[[Batch], Float[Array, "B S"]]:
    """Weights for :attr:`bert_jax.MaskPolicy.weights` from a file with a piece, a tab and its weight in each line.

    A line may also name two pieces, with a space between them: a token has the largest weight of those of itself and of the
    pairs that it makes with its neighbours. What the file lacks has the weight 0.

    Args:
      path: the file.
      pieces: the tokenizer's.

    Raises:
      UserError: the file is missing, or a line holds something else, or no weight is above 0.
    """
    path = epath.Path(path)
    require(path.is_file(), f"There is no file {path} of weights.")
    numbers = {piece: number for number, piece in enumerate(pieces)}
    table, pairs = np.zeros(len(pieces), np.float32), dict[int, float]()
    text = path.read_bytes()
    try:
        lines = text.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}.") from None
    for at, line in enumerate(lines, 1):
        names, weight = _line(line)
        require(
            0 < len(names) <= 2 and all(name in numbers for name in names) and 0 <= weight < math.inf,
            f"{path}, line {at}: {line!r} is not a piece of the vocabulary (or two), a tab and a weight of at least 0.",
        )
        first, *second = (numbers[name] for name in names)
        if second:
            pairs[first * len(pieces) + second[0]] = weight
        else:
            table[first] = weight
    require(bool(table.any()) or any(pairs.values()), f"{path} gives no piece a weight above 0.")
    require(not pairs or len(pieces) < 2**16, f"{path} has pairs, whose vocabulary may have 65,535 pieces; it has {len(pieces):,}.")
    keys = np.array(sorted(pairs), np.uint32)
    values = np.array([pairs[int(key)] for key in keys], np.float32)

    def weights(batch: Batch) -> Float[Array, "B S"]:
        ids, segments = batch["ids"], batch["segments"]
        found = ops.lookup(jnp.asarray(table), ids)
        if not len(keys):
            return found
        wanted = ids[:, :-1].astype(jnp.uint32) * len(pieces) + ids[:, 1:].astype(jnp.uint32)
        place = jnp.minimum(jnp.searchsorted(jnp.asarray(keys), wanted), len(keys) - 1)
        known = (jnp.asarray(keys)[place] == wanted) & (segments[:, :-1] == segments[:, 1:])
        both = jnp.where(known, jnp.asarray(values)[place], 0.0)
        return jnp.maximum(found, jnp.maximum(jnp.pad(both, ((0, 0), (0, 1))), jnp.pad(both, ((0, 0), (1, 0)))))

    # By what it says a run is told from one with another file.
    weights.__qualname__ = f"read_weights {path.name} {hashlib.blake2b(text, digest_size=8).hexdigest()}"
    return weights


def known(weights: Callable[[Batch], Array], length: int, pieces: int) -> Callable[[Batch], Array]:
    """A function of weights under a name that says some of its values, once it has shown that it gives weights.

    Args:
      weights: what is asked, of a batch of ids from the whole vocabulary.
      length: S, tokens in a row.
      pieces: V, those of the vocabulary.

    Raises:
      UserError: it cannot be compiled, or what it gives is not [B, S].
    """
    shape = (8, length)
    ids = np.linspace(0, pieces - 1, 8 * length).astype(np.int32).reshape(shape)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    same = dict.fromkeys(("positions", "offsets", "words"), place)
    probe = {"ids": ids, "types": 0 * ids, "segments": 0 * ids + 1, "examples": ids[:, :1], "cls_positions": 0 * ids[:, :1]} | same
    name = schedules.name_of(weights)
    try:
        found = np.asarray(jax.jit(weights)(probe), np.float32)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        raise UserError(
            f"{name} cannot be compiled, since it asks for values; make tables with jnp.asarray, use jnp.where."
        ) from None
    require(found.shape == shape, f"{name} gives weights {[*found.shape]} for a batch of {[*shape]}; give one for each token.")

    def named(batch: Batch) -> Array:
        return weights(batch)

    named.__qualname__ = schedules.told(weights, found.reshape(-1))
    return named


def _line(line: str) -> tuple[list[str], float]:
    names, tab, weight = line.rpartition("\t")
    try:
        return names.split(" ") if tab else [], float(weight)
    except ValueError:
        return [], 0.0
