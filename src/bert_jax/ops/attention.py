"""Scaled dot-product attention within segments (Vaswani et al. 2017, section 3.2): a reference and fused kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax import sharding
from bert_jax.errors import UserError
from bert_jax.ops.products import project
from bert_jax.ops.randomness import dropout as apply_dropout

_LANES = 128


def segment_mask(segment_ids: Int[Array, "B S"], *, causal: bool = False) -> Bool[Array, "B S S"]:
    """Which query attends to which key: both in one segment, and with ``causal`` no later key. Padding (0) is never attended to.

    Examples:
      >>> segment_mask(jnp.array([[1, 1, 0]])).astype(int).tolist()
      [[[1, 1, 0], [1, 1, 0], [0, 0, 0]]]
    """
    return _same_segment(segment_ids, causal)[:, 0] & (segment_ids[:, None, :] > 0)


def attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
    *,
    keys: Key[Array, "B H"] | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    implementation: str = "reference",
) -> Float[Array, "B S H K"]:
    """Attend within each query's own segment, in q's dtype with a float32 softmax.

    Padding queries give zeros. As in the original, dropout is applied to the attention probabilities, so that a row of
    them no longer sums to one; only the reference implements it.

    Args:
      q, k, v: projected queries, keys and values; scaling by 1/sqrt(K) happens here.
      segment_ids: 0 marks padding, other values mark the packed examples of a row.
      keys: dropout keys of each row and head, or None for no dropout.
      dropout: probability of dropping an attention probability.
      causal: a query does not attend to later keys.
      implementation: a value of [`ModelConfig.attention`][bert_jax.ModelConfig.attention]; "auto" resolves as in ``select``.

    Raises:
      UserError: dropout is requested from an implementation without dropout.

    Examples:
      >>> x = jnp.ones((1, 2, 1, 4))
      >>> attention(x, x, x, jnp.array([[1, 0]]))[0, :, 0, 0].tolist()
      [1.0, 0.0]
    """
    drops = keys is not None and dropout > 0
    if implementation == "auto":
        implementation = _fastest(q.dtype, q.shape[1], q.shape[3], drops=drops)
    if implementation == "reference":
        return _reference(q, k, v, segment_ids, keys, dropout, causal=causal)
    if drops:
        raise UserError(f"The attention implementation {implementation} has no dropout; use the reference, or a rate of 0.")
    kernel = _FUSED[implementation]

    def local(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
        # Padding attends to padding, so that every softmax has a key.
        return jnp.where(segment_ids[:, :, None, None] > 0, kernel(q, k, v, segment_ids, causal), 0)

    layout, rows = sharding.spec_of(q), sharding.spec_of(segment_ids)
    if layout is None:
        return local(q, k, v, segment_ids)
    mapped = jax.shard_map(local, in_specs=(layout, layout, layout, rows), out_specs=layout, check_vma=False)
    return mapped(q, k, v, segment_ids)


def select(name: str, *, dtype: str, sequence_length: int, head_size: int, dropout: bool) -> str:
    """Resolve the name of an attention implementation for this machine.

    "auto" chooses a fused kernel where one exists for the device and the shape, the dtype is bfloat16 (the kernels multiply
    float32 with fewer bits) and no probability is dropped: splash attention on a TPU, cuDNN's on an NVIDIA GPU of compute
    capability 8 or above. Otherwise it chooses the reference, which is also the fastest on a CPU.

    Args:
      name: a value of [`ModelConfig.attention`][bert_jax.ModelConfig.attention].
      dtype: compute dtype.
      sequence_length: S, tokens in a row.
      head_size: K.
      dropout: whether attention probabilities are dropped.

    Raises:
      UserError: the named implementation cannot run here.

    Examples:
      >>> select("auto", dtype="float32", sequence_length=128, head_size=64, dropout=True)
      'reference'
    """
    backend = jax.default_backend()
    if name == "auto":
        return _fastest(jnp.dtype(dtype), sequence_length, head_size, drops=dropout)
    required = {"cudnn": "gpu", "splash": "tpu"}.get(name, backend)
    if backend != required:
        raise UserError(
            f"model.attention is {name}, which needs a {required.upper()}; this is a {backend.upper()}. Leave it to auto."
        )
    if name not in ("reference", "xla") and jnp.dtype(dtype) != jnp.bfloat16:
        raise UserError(f"model.attention is {name}, which has no full float32 products; use bfloat16, or leave it to auto.")
    if name == "cudnn" and not _fits_cudnn(sequence_length, head_size):
        raise UserError(
            f"model.attention is cudnn, which needs compute capability 8, an even number of tokens (here {sequence_length}) and a "
            f"head size divisible by 8, of at most 128, or 256 from capability 9 on (here {head_size}); leave it to auto."
        )
    if name == "tokamax" and importlib.util.find_spec("tokamax") is None:
        raise UserError("model.attention is tokamax, which is not installed; install bert_jax[tokamax], which needs Python 3.12.")
    return name


def _fastest(dtype: jnp.dtype, length: int, head_size: int, *, drops: bool) -> str:
    if drops or dtype != jnp.bfloat16:
        return "reference"
    if jax.default_backend() == "tpu":
        return "splash"
    return "cudnn" if jax.default_backend() == "gpu" and _fits_cudnn(length, head_size) else "reference"


def _fits_cudnn(length: int, head_size: int) -> bool:
    # AMD's devices, whose capability is a name, have no cuDNN.
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    if not major.isdigit() or int(major) < 8:
        return False
    return length % 2 == 0 and head_size % 8 == 0 and head_size <= (128 if int(major) == 8 else 256)


def _reference(q: Array, k: Array, v: Array, segment_ids: Array, keys: Array | None, dropout: float, *, causal: bool) -> Array:
    visible = segment_mask(segment_ids, causal=causal)[:, None]
    scores = project("BSHK,BTHK->BHST", q, k, float32_result=True) * q.shape[-1] ** -0.5
    # The original adds -10000 to hidden scores; a float32 softmax gives exact zeros for either.
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    probabilities = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0.0)
    probabilities = apply_dropout(probabilities, keys, dropout).astype(q.dtype)
    return project("BHST,BTHK->BSHK", probabilities, v)


def _same_segment(segment_ids: Array, causal: bool) -> Array:
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    place = jnp.arange(segment_ids.shape[1])
    return same & (place[:, None] >= place) if causal else same


def _xla(q: Array, k: Array, v: Array, segment_ids: Array, causal: bool) -> Array:
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else None):
        return jax.nn.dot_product_attention(q, k, v, mask=_same_segment(segment_ids, causal), implementation="xla")


def _cudnn(q: Array, k: Array, v: Array, segment_ids: Array, causal: bool) -> Array:
    # Its public form knows lengths or a mask; lengths cannot tell packed examples apart.
    return jax.nn.dot_product_attention(q, k, v, mask=_same_segment(segment_ids, causal), implementation="cudnn")


def _splash(q: Array, k: Array, v: Array, segment_ids: Array, causal: bool, *, interpret: bool = False) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, missing = q.shape[1], -q.shape[1] % _LANES
    q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q * q.shape[-1] ** -0.5, k, v))
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, missing)))
    whole = length + missing
    block = next(size for size in (512, 384, 256, _LANES) if whole % size == 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([(masks.CausalMask if causal else masks.FullMask)((whole, whole))] * q.shape[2]),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    mixed = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)), kernels.SegmentIds(segment_ids, segment_ids))
    return mixed.swapaxes(1, 2)[:, :length]


def _tokamax(q: Array, k: Array, v: Array, segment_ids: Array, causal: bool) -> Array:
    import tokamax

    mixed: Array = tokamax.dot_product_attention(q, k, v, mask=_same_segment(segment_ids, causal))
    return mixed


_FUSED: dict[str, Callable[[Array, Array, Array, Array, bool], Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": _splash,
    "tokamax": _tokamax,
}
