"""Mesh, logical axes and layouts: the only module that uses the names of mesh axes.

Arrays are described by logical axes. Two tables map each logical axis to mesh axes: one for activations and for parameters in a
computation, one for stored parameters and their optimizer state. Data parallelism, FSDP, tensor parallelism, several slices and
their combinations are sizes of the mesh, not code. Without an explicit mesh (in a notebook, or under ``pmap``) the functions that
lay out arrays return them unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.errors import UserError

AXES = SLICE, DATA, FSDP, TENSOR = "slice", "data", "fsdp", "tensor"
"""Axes of the mesh, from the slowest network (between slices) to the fastest (between neighbours)."""

Rules = dict[str | None, tuple[str, ...]]

ACTIVATION_RULES: Rules = {
    None: (),
    "batch": (SLICE, DATA, FSDP),
    "hidden": (),
    "heads": (TENSOR,),
    "ffn": (TENSOR,),
    "vocab": (TENSOR,),
}
"""Mesh axes of each logical axis, for activations and for parameters while they are used."""
PARAM_RULES: Rules = ACTIVATION_RULES | {"hidden": (FSDP,)}
"""Mesh axes of each logical axis, for stored parameters and optimizer state."""

PARAM_AXES: dict[str, tuple[str | None, ...]] = {
    "embeddings/word": ("vocab", "hidden"),
    "embeddings/position": (None, "hidden"),
    "embeddings/type": (None, "hidden"),
    "query/kernel": ("hidden", "heads", None),
    "query/bias": ("heads", None),
    "key/kernel": ("hidden", "heads", None),
    "key/bias": ("heads", None),
    "value/kernel": ("hidden", "heads", None),
    "value/bias": ("heads", None),
    "output/kernel": ("heads", None, "hidden"),
    "output/bias": (None,),
    "inner/kernel": ("hidden", "ffn"),
    "inner/bias": ("ffn",),
    "outer/kernel": ("ffn", "hidden"),
    "outer/bias": (None,),
    "norm/scale": (None,),
    "norm/bias": (None,),
    "pooler/kernel": ("hidden", None),
    "pooler/bias": (None,),
    "dense/kernel": ("hidden", None),
    "dense/bias": (None,),
    "mlm/bias": ("vocab",),
    "mlm/decoder": ("vocab", "hidden"),
}
"""Logical axes of each parameter, by the last two names of its path; stacked layers add a leading axis."""
for _name in ("forward", "backward"):
    PARAM_AXES |= {f"{_name}/kernel": (None, None), f"{_name}/recurrent": (None, None), f"{_name}/bias": (None,)}
PARAM_AXES |= {"readout/weights": (None,), "readout/scale": (None,)}
for _head in (
    "nsp",
    "sequence_classification",
    "multilabel_classification",
    "regression",
    "multiple_choice",
    "token_classification",
    "question_answering",
):
    PARAM_AXES |= {f"{_head}/kernel": ("hidden", None), f"{_head}/bias": (None,)}


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Create an explicit mesh (slice, data, fsdp, tensor) over all devices.

    Args:
      data, fsdp, tensor: devices along each axis within a slice; ``data`` -1 takes the devices that the other axes leave.
      slices: groups of devices that a data-center network connects. Devices that know their slice are grouped by it; CPU devices,
        which do not, are divided in order.
      devices: the devices; ``jax.devices()`` by default.

    Raises:
      UserError: the axes do not multiply to the number of devices, or the devices lie in another number of slices.

    Examples:
      >>> make_mesh().shape["data"] == jax.device_count()
      True
    """
    devices = jax.devices() if devices is None else devices
    rest = slices * fsdp * tensor
    size = len(devices) // rest if data == -1 else data
    if size * rest != len(devices):
        several = f"slices {slices} x " if slices > 1 else ""
        raise UserError(
            f"A mesh of {several}data {data} x fsdp {fsdp} x tensor {tensor} does not cover {len(devices)} devices; "
            f"change {'--mesh.slices, ' if slices > 1 else ''}--mesh.data, --mesh.fsdp or --mesh.tensor."
        )
    kinds = (AxisType.Explicit,) * len(AXES)
    if slices == 1:
        return jax.make_mesh((1, size, fsdp, tensor), AXES, kinds, devices=devices)
    return Mesh(_order_by_slice(devices, slices, (1, size, fsdp, tensor)), AXES, axis_types=kinds)


def _order_by_slice(devices: Sequence[Any], slices: int, shape: tuple[int, ...]) -> np.ndarray:
    """Devices [slices, data, fsdp, tensor], each slice in an order that suits its own network."""
    if devices[0].platform == "cpu":
        return np.array(devices).reshape(slices, *shape[1:])
    found = {getattr(device, "slice_index", 0) for device in devices}
    if len(found) != slices:
        raise UserError(f"mesh.slices is {slices}, but the devices lie in {len(found)} slices; use --mesh.slices {len(found)}.")
    try:
        return mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1, 1), devices)
    except ValueError as error:
        raise UserError(f"The devices cannot be divided into {slices} slices of equal size: {error}") from None


def spec(*axes: str | None) -> P | None:
    """Partition of an activation with these logical axes, or None without an explicit mesh.

    Examples:
      >>> with jax.set_mesh(make_mesh()):
      ...     spec(None, "hidden")
      P(None, None)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        return None
    return P(*(_place(axis, ACTIVATION_RULES, mesh) for axis in axes))


def spec_of(value: jax.Array) -> P | None:
    """Partition of an array inside a compiled program, or None without an explicit mesh."""
    return None if spec() is None else jax.typeof(value).sharding.spec


def devices() -> int:
    """Number of devices of the explicit mesh; 1 without one."""
    return 1 if spec() is None else jax.sharding.get_abstract_mesh().size


def no_mesh() -> contextlib.AbstractContextManager[None]:
    """A context without an explicit mesh, so that what is traced in it is laid out as on one device."""
    return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


def reshard(value: jax.Array, *axes: str | None) -> jax.Array:
    """Lay an activation out by its logical axes."""
    layout = spec(*axes)
    return value if layout is None else jax.sharding.reshard(value, layout)


def automatic(function: Callable[..., jax.Array], *axes: str | None) -> Callable[..., jax.Array]:
    """Compile a user's function, written without layouts, with automatic sharding; its result is laid out by these axes."""
    layout = spec(*axes)
    return function if layout is None else jax.sharding.auto_axes(function, out_sharding=layout)


def gather(value: jax.Array, path: str) -> jax.Array:
    """Reshard a parameter from its stored layout to that of the computation: the all-gather of FSDP.

    Its transpose is the reduce-scatter of the gradient.

    Args:
      value: the parameter.
      path: a key of ``PARAM_AXES``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        return value
    return jax.sharding.reshard(value, _layout(PARAM_AXES[path], value.shape, ACTIVATION_RULES, mesh))


def reshard_like(value: jax.Array, other: jax.Array) -> jax.Array:
    """Lay an array out like another array of the same shape."""
    layout = spec_of(other)
    return value if layout is None else jax.sharding.reshard(value, layout)


def reshard_layers(value: jax.Array) -> jax.Array:
    """Lay out a parameter that is stacked over layers so that each device holds whole layers.

    The layer axis is sharded over those mesh axes that divide the number of layers; without one, the parameter is replicated.
    """
    if spec() is None:
        return value
    mesh, shards, names = jax.sharding.get_abstract_mesh(), 1, []
    # Not TENSOR: XLA cannot merge two sharded axes into one in a single exchange. Not SLICE: its network is slow.
    for name in (FSDP, DATA):
        size = mesh.shape[name]
        if size > 1 and value.ndim > 1 and value.shape[0] % (shards * size) == 0:
            names.append(name)
            shards *= size
    return jax.sharding.reshard(value, P(tuple(names)) if names else P())


def replicate(value: jax.Array) -> jax.Array:
    """Replicate a parameter on every device, as a table lookup requires."""
    return reshard(value, *(None,) * value.ndim)


def parameter_key(path: tuple[str, ...]) -> str:
    """Key of ``PARAM_AXES`` for a parameter's path.

    Examples:
      >>> parameter_key(("bert", "layers", "attention", "query", "kernel"))
      'query/kernel'
    """
    return "/".join(path[-2:])


def state_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of a tree that contains parameters, or optimizer moments under the same names.

    Leaves that are not parameters (a step count, a random key) are replicated.
    """

    def leaf_sharding(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        axes = PARAM_AXES.get(parameter_key(names))
        if axes is None or not leaf.shape:
            return NamedSharding(mesh, P())
        stacked = (None,) * (len(leaf.shape) - len(axes))
        return NamedSharding(mesh, _layout(stacked + axes, leaf.shape, PARAM_RULES, mesh))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of a batch: rows over the slice, data and fsdp axes."""
    return NamedSharding(mesh, P(_place("batch", ACTIVATION_RULES, mesh)))


def batch_shards(mesh: Mesh) -> int:
    """Number of shards of a batch."""
    return mesh.shape[SLICE] * mesh.shape[DATA] * mesh.shape[FSDP]


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Rows [R] of a global batch that this process's devices hold, in order; R = batch_size in one process."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def check_divisible(mesh: Mesh, *, heads: int, hidden: int, ffn: int) -> None:
    """Check that the dimensions of a model divide over the mesh.

    Raises:
      UserError: a dimension is not divisible by its mesh axis.
    """
    for name, size, axis in (
        ("num_attention_heads", heads, TENSOR),
        ("intermediate_size", ffn, TENSOR),
        ("hidden_size", hidden, FSDP),
    ):
        if size % mesh.shape[axis]:
            raise UserError(f"model.{name} {size} is not divisible by mesh.{axis} {mesh.shape[axis]}.")


def _place(axis: str | None, rules: Rules, mesh: Mesh | AbstractMesh) -> tuple[str, ...] | None:
    # JAX's operations omit mesh axes of size 1 from the types that they infer.
    return tuple(name for name in rules[axis] if mesh.shape[name] > 1) or None


def _layout(axes: tuple[str | None, ...], shape: tuple[int, ...], rules: Rules, mesh: Mesh | AbstractMesh) -> P:
    # BERT's vocabulary of 30,522 tokens is divisible by 2 but not by 4; one that is not divisible is replicated.
    replicated = {axis for axis, size in zip(axes, shape, strict=True) if axis == "vocab" and size % mesh.shape[TENSOR]}
    return P(*(None if axis in replicated else _place(axis, rules, mesh) for axis in axes))
