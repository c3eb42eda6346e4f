"""Mesh, logical axes and layouts: the only file that knows the names of mesh axes.

Arrays are described by logical axes. Two small tables say where each logical axis lives: while a product is
computed, and while a parameter (or its optimizer state) waits between uses. Data parallelism, FSDP, tensor
parallelism and their mixes are sizes of the mesh, not code. Without an explicit mesh (a notebook, ``pmap``)
every function here leaves its argument alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.config.run import MeshConfig
from bert_jax.errors import UserError

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"

Rules = dict[str | None, tuple[str, ...]]

COMPUTED: Rules = {
    None: (),
    "batch": (DATA, FSDP),
    "hidden": (),
    "heads": (TENSOR,),
    "ffn": (TENSOR,),
    "vocab": (TENSOR,),
}
STORED: Rules = COMPUTED | {"hidden": (FSDP,)}

# Logical axes of each parameter, by the last two names of its path; stacked layers add a leading axis.
PARAMETERS: dict[str, tuple[str | None, ...]] = {
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
}
for _name in ("forward", "backward"):
    PARAMETERS |= {f"{_name}/kernel": (None, None), f"{_name}/recurrent": (None, None), f"{_name}/bias": (None,)}
PARAMETERS |= {"readout/weights": (None,), "readout/scale": (None,)}
for _head in ("nsp", "classify", "regress", "tag", "span", "choose"):
    PARAMETERS |= {f"{_head}/kernel": ("hidden", None), f"{_head}/bias": (None,)}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The explicit mesh (data, fsdp, tensor) over all devices.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    if data * rest != len(devices):
        raise UserError(
            f"A mesh of data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not cover {len(devices)} devices; "
            "change --mesh.data, --mesh.fsdp or --mesh.tensor."
        )
    return jax.make_mesh((data, config.fsdp, config.tensor), (DATA, FSDP, TENSOR), (AxisType.Explicit,) * 3, devices=devices)


def spec(*axes: str | None) -> P | None:
    """Partition of an activation with these logical axes, or None where no explicit mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        return None
    return P(*(_place(axis, COMPUTED, mesh) for axis in axes))


def spec_of(value: jax.Array) -> P | None:
    """Partition of an array inside a program, or None where no explicit mesh is set."""
    return None if spec() is None else jax.typeof(value).sharding.spec


def devices() -> int:
    """Devices that a program's arrays are divided over; 1 where no explicit mesh is set."""
    return 1 if spec() is None else jax.sharding.get_abstract_mesh().size


def split(value: jax.Array, *axes: str | None) -> jax.Array:
    """Lay an activation out by its logical axes."""
    layout = spec(*axes)
    return value if layout is None else jax.sharding.reshard(value, layout)


def automatic(function: Callable[..., jax.Array], *axes: str | None) -> Callable[..., jax.Array]:
    """A user's function, which knows nothing of layouts, as one whose result is laid out by these logical axes."""
    layout = spec(*axes)
    return function if layout is None else jax.sharding.auto_axes(function, out_sharding=layout)


def gather(value: jax.Array, path: str) -> jax.Array:
    """Bring a parameter from its stored to its computed layout: the all-gather of FSDP.

    Its transpose is the reduce-scatter of the gradient.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        return value
    return jax.sharding.reshard(value, _layout(PARAMETERS[path], value.shape, COMPUTED, mesh))


def like(value: jax.Array, other: jax.Array) -> jax.Array:
    """Lay an array out as another one of its shape."""
    layout = spec_of(other)
    return value if layout is None else jax.sharding.reshard(value, layout)


def split_layers(value: jax.Array) -> jax.Array:
    """Lay out a parameter that is stacked over layers so that a device holds whole layers: over as many mesh axes as divide
    their number, and over none if there is no axis to divide."""
    if spec() is None:
        return value
    mesh, parts, names = jax.sharding.get_abstract_mesh(), 1, []
    # "tensor" stays out: laying two divided axes out over one is more than the compiler does in one exchange.
    for name in (FSDP, DATA):
        size = mesh.shape[name]
        if size > 1 and value.ndim > 1 and value.shape[0] % (parts * size) == 0:
            names.append(name)
            parts *= size
    return jax.sharding.reshard(value, P(tuple(names)) if names else P())


def replicate(value: jax.Array) -> jax.Array:
    """Bring a parameter whole to every device, as a table lookup needs it."""
    return split(value, *(None,) * value.ndim)


def parameter_key(path: tuple[str, ...]) -> str:
    """Row of :data:`PARAMETERS` that a parameter's path belongs to."""
    return "/".join(path[-2:])


def state_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of a tree that holds parameters, or optimizer moments under the same names.

    A leaf whose path names no parameter (a count, a key) is replicated.
    """

    def one(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        axes = PARAMETERS.get(parameter_key(names))
        if axes is None or not leaf.shape:
            return NamedSharding(mesh, P())
        stacked = (None,) * (len(leaf.shape) - len(axes))
        return NamedSharding(mesh, _layout(stacked + axes, leaf.shape, STORED, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, P(_place("batch", COMPUTED, mesh)))


def batch_shards(mesh: Mesh) -> int:
    """Parts into which a batch is divided."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Rows [R] of a global batch that this process's devices hold, in order; R = batch_size in one process."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def check_divisible(mesh: Mesh, *, heads: int, hidden: int, ffn: int) -> None:
    """Raise a UserError where a model dimension does not divide over its mesh axis."""
    for name, size, axis in (
        ("num_attention_heads", heads, TENSOR),
        ("intermediate_size", ffn, TENSOR),
        ("hidden_size", hidden, FSDP),
    ):
        if size % mesh.shape[axis]:
            raise UserError(f"model.{name} {size} is not divisible by mesh.{axis} {mesh.shape[axis]}.")


def _place(axis: str | None, rules: Rules, mesh: Mesh | AbstractMesh) -> tuple[str, ...] | None:
    # JAX's own operations leave mesh axes of size 1 out of the types they infer, and so do we.
    return tuple(name for name in rules[axis] if mesh.shape[name] > 1) or None


def _layout(axes: tuple[str | None, ...], shape: tuple[int, ...], rules: Rules, mesh: Mesh | AbstractMesh) -> P:
    # 30,522 pieces divide by 2 but not by 4: a vocabulary that does not divide stays whole.
    whole = {axis for axis, size in zip(axes, shape, strict=True) if axis == "vocab" and size % mesh.shape[TENSOR]}
    return P(*(None if axis in whole else _place(axis, rules, mesh) for axis in axes))
