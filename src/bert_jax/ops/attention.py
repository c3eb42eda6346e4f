"""Scaled dot-product attention within segments (Vaswani et al. 2017, section 3.2), by several implementations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.config.run import ModelConfig
from bert_jax.errors import UserError

_LANES = 128


def segment_mask(segments: Int[Array, "B S"], *, causal: bool = False) -> Bool[Array, "B S S"]:
    """Which query may see which key: both in the same segment, padding (segment 0) seen by none; of causal ones, no later key."""
    return _same(segments, causal)[:, 0] & (segments[:, None, :] > 0)


def attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segments: Int[Array, "B S"],
    *,
    keys: Key[Array, "B H"] | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    impl: str = "reference",
) -> Float[Array, "B S H K"]:
    """Mix the values of each query's own segment, in q's dtype with a float32 softmax.

    Padding queries give zeros. Dropout falls on the probabilities, as in the original, so a row of them no
    longer sums to one; only "reference" has it.

    Args:
      q, k, v: projected queries, keys and values; scaling by 1/sqrt(K) happens here.
      segments: 0 marks padding, other numbers the packed examples of a row.
      keys: dropout keys of each row and head, or None for no dropout.
      dropout: probability that a probability is dropped.
      causal: whether a query sees no key that stands after it.
      impl: one of those of :attr:`bert_jax.ModelConfig.attention`; "auto" is what :func:`select` says.

    Raises:
      UserError: dropout from an implementation that has none.
    """
    drops = keys is not None and dropout > 0
    if impl == "auto":
        impl = _fastest(q.dtype, q.shape[1], q.shape[3], drops=drops)
    if impl == "reference":
        return _reference(q, k, v, segments, keys, dropout, causal=causal)
    if drops:
        raise UserError(f"attention by {impl} has no dropout; use the reference, or a rate of 0.")
    inner = _FUSED[impl]

    def local(q: Array, k: Array, v: Array, segments: Array) -> Array:
        # Padding sees padding, so that no softmax is over nothing.
        return jnp.where(segments[:, :, None, None] > 0, inner(q, k, v, segments, causal), 0)

    layout, rows = sharding.spec_of(q), sharding.spec_of(segments)
    if layout is None:
        return local(q, k, v, segments)
    mapped = jax.shard_map(local, in_specs=(layout, layout, layout, rows), out_specs=layout, check_vma=False)
    return mapped(q, k, v, segments)


def select(config: ModelConfig, length: int, *, training: bool) -> str:
    """The implementation that a model uses on this machine for rows of ``length`` tokens.

    "auto" takes a fused kernel where there is one for the device and the shape, the dtype is bfloat16 (the kernels multiply
    float32 with fewer bits) and no probability is to be dropped: splash attention on a TPU, cuDNN's on an NVIDIA GPU of
    compute capability 8 or above. Else the reference, which on a CPU is also the fastest.

    Raises:
      UserError: the implementation that the config names cannot run here.
    """
    name, backend, drops = config.attention, jax.default_backend(), training and config.attention_probs_dropout_prob > 0
    dtype = jnp.dtype(config.dtype)
    if name == "auto":
        return _fastest(dtype, length, config.head_size, drops=drops)
    needed = {"cudnn": "gpu", "splash": "tpu"}.get(name, backend)
    if backend != needed:
        raise UserError(
            f"model.attention is {name}, which needs a {needed.upper()}; this is a {backend.upper()}. Leave it to auto."
        )
    if name not in ("reference", "xla") and dtype != jnp.bfloat16:
        raise UserError(f"model.attention is {name}, which has no full float32 products; use bfloat16, or leave it to auto.")
    if name == "cudnn" and not _fits_cudnn(length, config.head_size):
        raise UserError(
            f"model.attention is cudnn, which needs compute capability 8, an even number of tokens (here {length}) and a head "
            f"size divisible by 8, of at most 128, or 256 from capability 9 on (here {config.head_size}); leave it to auto."
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


def _reference(q: Array, k: Array, v: Array, segments: Array, keys: Array | None, dropout: float, *, causal: bool) -> Array:
    visible = segment_mask(segments, causal=causal)[:, None]
    scores = ops.project("BSHK,BTHK->BHST", q, k, wide=True) * q.shape[-1] ** -0.5
    # The original adds -10000 to hidden scores; a float32 softmax gives exact zeros for either.
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    probabilities = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0.0)
    probabilities = ops.dropout(probabilities, keys, dropout).astype(q.dtype)
    return ops.project("BHST,BTHK->BSHK", probabilities, v)


def _same(segments: Array, causal: bool) -> Array:
    same = segments[:, None, :, None] == segments[:, None, None, :]
    place = jnp.arange(segments.shape[1])
    return same & (place[:, None] >= place) if causal else same


def _xla(q: Array, k: Array, v: Array, segments: Array, causal: bool) -> Array:
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else None):
        return jax.nn.dot_product_attention(q, k, v, mask=_same(segments, causal), implementation="xla")


def _cudnn(q: Array, k: Array, v: Array, segments: Array, causal: bool) -> Array:
    # Its public form knows lengths or a mask; lengths cannot tell packed examples apart.
    return jax.nn.dot_product_attention(q, k, v, mask=_same(segments, causal), implementation="cudnn")


def _splash(q: Array, k: Array, v: Array, segments: Array, causal: bool, *, interpret: bool = False) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, missing = q.shape[1], -q.shape[1] % _LANES
    q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q * q.shape[-1] ** -0.5, k, v))
    segments = jnp.pad(segments, ((0, 0), (0, missing)))
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
    mixed = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)), kernels.SegmentIds(segments, segments))
    return mixed.swapaxes(1, 2)[:, :length]


def _tokamax(q: Array, k: Array, v: Array, segments: Array, causal: bool) -> Array:
    import tokamax

    mixed: Array = tokamax.dot_product_attention(q, k, v, mask=_same(segments, causal))
    return mixed


_FUSED: dict[str, Callable[[Array, Array, Array, Array, bool], Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": _splash,
    "tokamax": _tokamax,
}
