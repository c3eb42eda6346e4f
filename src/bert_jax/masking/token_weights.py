"""Weights that make some tokens likelier to be selected: by frequency, or by the PMI of two neighbours."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from bert_jax import ops
from bert_jax.batch import Batch
from bert_jax.config.schedules import identity, name_of
from bert_jax.errors import UserError

# Pairs of token ids are looked up as one uint32.
_MAX_VOCAB_OF_PAIRS = 2**16


@dataclasses.dataclass(frozen=True)
class TokenWeights:
    """A function of a batch that returns weights [B, S], with an identity by which a resumed run recognizes it."""

    identity: str
    """File name and digest of a table, or [`identity`][bert_jax.config.schedules.identity] of a function."""
    function: Callable[[Batch], Array] = dataclasses.field(compare=False)

    def __call__(self, batch: Batch) -> Array:
        """Weights float [B, S] of the tokens of a batch."""
        return self.function(batch)


def read_token_weights(path: epath.PathLike, tokens: Sequence[str]) -> TokenWeights:
    """Read weights from a file with a token, a tab and a weight per line, for ``MaskPolicy.token_weights``.

    A line may also hold two tokens separated by a space. The weight of a token is the largest of its own and of those of the
    pairs that it forms with its neighbours; tokens that are not in the file have weight 0.

    Args:
      path: the file.
      tokens: the tokenizer's tokens, by id.

    Raises:
      UserError: the file is missing, a line has another form, or no weight is positive.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path} of token weights.")
    content = path.read_bytes()
    ids = {token: index for index, token in enumerate(tokens)}
    table, pairs = np.zeros(len(tokens), np.float32), dict[int, float]()
    try:
        lines = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}.") from None
    for line_number, line in enumerate(lines, 1):
        names, weight = _parse(line)
        if not (0 < len(names) <= 2 and all(name in ids for name in names) and 0 <= weight < math.inf):
            raise UserError(
                f"{path}, line {line_number}: {line!r} is not a token of the vocabulary (or two), a tab and a weight of at least 0."
            )
        first, *second = (ids[name] for name in names)
        if second:
            pairs[first * len(tokens) + second[0]] = weight
        else:
            table[first] = weight
    if not table.any() and not any(pairs.values()):
        raise UserError(f"{path} gives no token a weight above 0.")
    if pairs and len(tokens) >= _MAX_VOCAB_OF_PAIRS:
        raise UserError(f"{path} has pairs, which need a vocabulary of at most 65,535 tokens; this one has {len(tokens):,}.")
    keys = np.array(sorted(pairs), np.uint32)
    values = np.array([pairs[int(key)] for key in keys], np.float32)

    def weights(batch: Batch) -> Float[Array, "B S"]:
        input_ids, segment_ids = batch["input_ids"], batch["segment_ids"]
        single = ops.lookup(jnp.asarray(table), input_ids)
        if not len(keys):
            return single
        neighbours = input_ids[:, :-1].astype(jnp.uint32) * len(tokens) + input_ids[:, 1:].astype(jnp.uint32)
        place = jnp.minimum(jnp.searchsorted(jnp.asarray(keys), neighbours), len(keys) - 1)
        known = (jnp.asarray(keys)[place] == neighbours) & (segment_ids[:, :-1] == segment_ids[:, 1:])
        pair = jnp.where(known, jnp.asarray(values)[place], 0.0)
        return jnp.maximum(single, jnp.maximum(jnp.pad(pair, ((0, 0), (0, 1))), jnp.pad(pair, ((0, 0), (1, 0)))))

    return TokenWeights(f"table {path.name} {hashlib.blake2b(content, digest_size=8).hexdigest()}", weights)


def check_function(function: Callable[[Batch], Array], sequence_length: int, vocab_size: int) -> TokenWeights:
    """Check that a function returns weights, and give it an identity.

    Args:
      function: called with a batch of ids from the whole vocabulary.
      sequence_length: S, tokens in a row.
      vocab_size: V.

    Raises:
      UserError: JAX cannot compile it, or it does not return [B, S].
    """
    shape = (8, sequence_length)
    ids = np.linspace(0, vocab_size - 1, 8 * sequence_length).astype(np.int32).reshape(shape)
    columns = np.broadcast_to(np.arange(sequence_length, dtype=np.int32), shape)
    probe = {
        "input_ids": ids,
        "token_type_ids": 0 * ids,
        "position_ids": columns,
        "segment_ids": 0 * ids + 1,
        "word_ids": columns,
        "example_ids": ids[:, :1],
        "cls_positions": 0 * ids[:, :1],
    }
    name = name_of(function)
    try:
        result = jax.eval_shape(lambda batch: jnp.asarray(function(batch)), probe)
        identifier = identity(function, probe)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        raise UserError(
            f"{name} cannot be compiled, because it needs values in Python; make tables with jnp.asarray, use jnp.where."
        ) from None
    if result.shape != shape:
        raise UserError(f"{name} returns weights {[*result.shape]} for a batch of {[*shape]}; return one for each token.")
    return TokenWeights(identifier, function)


def _parse(line: str) -> tuple[list[str], float]:
    names, tab, weight = line.rpartition("\t")
    try:
        return names.split(" ") if tab else [], float(weight)
    except ValueError:
        return [], 0.0
