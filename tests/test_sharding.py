"""Meshes, the layout of every parameter of the published sizes, and the collectives that follow from it."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from bert_jax import sharding
from bert_jax.cluster.collectives import collectives, summary
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.errors import UserError
from bert_jax.models import heads
from bert_jax.training import launchers, optimizers, step
from tests.runs import quickly_compiled
from tests.training.test_step import BATCH, CONFIG, objective

LAYOUTS = Path(__file__).parent / "golden" / "layouts.txt"
# (slice, data, fsdp, tensor)
MESHES = {"fsdp 8": (1, 1, 8, 1), "tensor 4": (1, 2, 1, 4), "slice 2 x data 2 x fsdp 2 x tensor 2": (2, 2, 2, 2)}


def abstract_mesh(*sizes):
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Explicit,) * len(sharding.AXES))


def typed(leaf, layout):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)


def names(axes):
    """Mesh axes of one dimension of a partition."""
    return (axes,) if isinstance(axes, str) else axes or ()


def layouts(size, mesh):
    """Lines with each parameter and its dimensions, each followed by the mesh axes that divide it."""
    shapes = jax.eval_shape(lambda: heads.init_params(ModelConfig.size(size), jax.random.key(0)))
    placed = sharding.state_shardings(shapes, abstract_mesh(*MESHES[mesh]))
    for (path, leaf), layout in zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(placed), strict=True):
        spec = (*layout.spec, *(None,) * (leaf.ndim - len(layout.spec)))
        dimensions = ["/".join([str(length), *names(axes)]) for length, axes in zip(leaf.shape, spec, strict=True)]
        yield f"{'/'.join(key.key for key in path)}: {' '.join(dimensions)}"


def table():
    """The text of the golden file, which `python -m tests.test_sharding` writes."""
    blocks = ("\n".join([f"{size}, {mesh}", *layouts(size, mesh)]) for size in ("base", "large") for mesh in MESHES)
    return "\n\n".join(blocks) + "\n"


def test_every_parameter_of_base_and_large_has_the_layout_of_the_table():
    assert table() == LAYOUTS.read_text()


@pytest.mark.parametrize("sizes", [(1, 64, 8, 1), (1, 512, 1, 1), (4, 8, 8, 2)])
def test_bert_large_type_checks_on_an_abstract_mesh_in_seconds(sizes):
    """64 x 8 devices, in one slice and in several; explicit shardings are types, which tracing checks."""
    began, mesh, rows = time.perf_counter(), abstract_mesh(*sizes), math.prod(sizes[:3])
    model = ModelConfig.size("large", layers="scan", remat="full", dtype="bfloat16")
    config = dataclasses.replace(CONFIG, model=model)
    optimizer = optimizers.make_optimizer(config.optim, 10)
    shapes = jax.eval_shape(lambda: step.init_state(config, optimizer))
    state = jax.tree.map(typed, shapes, sharding.state_shardings(shapes, mesh))
    batch = {name: np.broadcast_to(value[:1], (rows, *value.shape[1:])) for name, value in BATCH.items()}
    with jax.sharding.use_abstract_mesh(mesh):
        train_step = step.make_train_step(objective(config), optimizer)
        after, _ = jax.eval_shape(
            train_step, state, {name: typed(value, sharding.batch_sharding(mesh)) for name, value in batch.items()}
        )
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding.spec, b.sharding.spec), after.params, state.params)
    assert time.perf_counter() - began < 60


def test_slices_of_devices_that_know_theirs_are_kept_together():
    """As on hardware: the device order of JAX need not be that of the slices."""
    devices = [
        SimpleNamespace(platform="gpu", device_kind="made up", slice_index=number % 2, id=number, process_index=number % 2)
        for number in range(8)
    ]
    placed = sharding._order_by_slice(devices, 2, (1, 2, 2, 1))
    assert placed.shape == (2, 2, 2, 1)
    assert [{device.slice_index for device in part.flat} for part in placed] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh.slices is 4, but the devices lie in 2 slices; use --mesh.slices 2"):
        sharding._order_by_slice(devices, 4, (1, 2, 1, 1))
    with pytest.raises(UserError, match="cannot be divided into 2 slices of equal size"):
        sharding._order_by_slice(devices[:-1], 2, (1, 2, 2, 1))


def test_a_mesh_of_slices_covers_all_devices():
    mesh = sharding.make_mesh(fsdp=2, slices=2)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}
    assert [device.id for device in mesh.devices[0].flat] == [0, 1, 2, 3]
    assert sharding.batch_shards(mesh) == 8
    with pytest.raises(UserError, match=r"slices 3 x data -1 x fsdp 1 x tensor 1 does not cover 8 devices; change --mesh.slices"):
        sharding.make_mesh(slices=3)


def compiled(mesh, **changes):
    """Collectives of a compiled step, its parameters as shapes with layouts, and the mesh."""
    config = dataclasses.replace(CONFIG, mesh=mesh, **changes)
    launcher = launchers.launch(config)
    optimizer = optimizers.make_optimizer(config.optim, 10)
    shapes = jax.eval_shape(lambda: step.init_state(config, optimizer))
    state = jax.tree.map(typed, shapes, launcher.shardings(shapes))
    batch = {name: typed(value, sharding.batch_sharding(launcher.mesh)) for name, value in BATCH.items()}
    with launcher.context(), quickly_compiled():
        program = launcher.compile_step(step.make_train_step(objective(config), optimizer)).lower(state, batch).compile()
    return summary(collectives(program.as_text(), dict(launcher.mesh.shape))), state.params, dict(launcher.mesh.shape)


def kernels(params):
    """Bytes of the parameters that FSDP divides, whole."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    return {
        path: leaf.size * 4
        for path, leaf in paths.items()
        if "hidden" in sharding.PARAM_AXES[sharding.parameter_key(tuple(path.split("/")))]
    }


# Scalars and vectors: norms for clipping and metrics, sums of losses and weights.
SMALL = 4096
ADAMW = OptimConfig(name="adamw", peak_lr=1e-3, warmup_steps=0)


@pytest.mark.parametrize(
    ("mesh", "axes"), [(MeshConfig(8), ("data",)), (MeshConfig(4, slices=2), ("slice", "data"))], ids=["data 8", "slice 2 x data 4"]
)
def test_data_parallelism_only_sums_gradients(mesh, axes):
    """Each gradient is summed once over all devices, and no activation is exchanged."""
    found, params, _ = compiled(mesh, optim=ADAMW)
    (only,) = found
    assert (only.kind, only.axes) == ("all-reduce", axes)
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    # The word embeddings have two gradients, as a table and as the decoder.
    gradients += params["bert"]["embeddings"]["word"].size * 4
    assert gradients <= only.size < gradients + SMALL


def test_fsdp_gathers_each_kernel_once_and_sums_gradients():
    """Without recomputation, the backward pass uses the kernels that the forward pass has gathered."""
    found, params, _ = compiled(MeshConfig(1, 8), optim=ADAMW)
    gathered, summed = {kind: found_of(found, kind, ("fsdp",)) for kind in ("all-gather", "all-reduce")}.values()
    assert len(found) == 2
    assert gathered == sum(kernels(params).values())
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(params)) + params["bert"]["embeddings"]["word"].size * 4
    assert gradients <= summed < gradients + SMALL


def found_of(found, kind, axes):
    return sum(size for name, along, size, _ in found if (name, along) == (kind, axes))


def test_slices_exchange_nothing_but_gradients():
    """Kernels are gathered within a slice, and activations are summed within tensor groups; both networks sum gradients."""
    found, params, mesh = compiled(MeshConfig(1, 2, 2, slices=2), optim=ADAMW)
    across = [collective for collective in found if "slice" in collective.axes]
    assert {collective.kind for collective in across} == {"all-reduce"}
    divided = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.size * 4 // _tensor_parts(leaf, mesh), params))
    # The gradient of the table of word embeddings is whole, that of the decoder is divided over the vocabulary.
    gradients = sum(divided) + params["bert"]["embeddings"]["word"].size * 4
    assert gradients <= sum(collective.size for collective in across) < gradients + SMALL
    within = {
        (collective.kind, collective.axes) for collective in found if collective.size >= SMALL and "slice" not in collective.axes
    }
    assert within == {("all-gather", ("fsdp",)), ("all-gather", ("tensor",)), ("all-reduce", ("tensor",))}
    # The table of word embeddings is gathered for the lookup.
    assert found_of(found, "all-gather", ("tensor",)) == params["bert"]["embeddings"]["word"].size * 4


def _tensor_parts(leaf, mesh):
    return mesh["tensor"] if any("tensor" in names(axes) for axes in leaf.sharding.spec) else 1


def test_tensor_parallelism_sums_two_activations_of_each_layer_forward_and_backward():
    found, _, _ = compiled(MeshConfig(2, 1, 4), optim=ADAMW)
    activations = CONFIG.data.batch_size // 2 * CONFIG.data.sequence_length * CONFIG.model.hidden_size * 4
    summed = found_of(found, "all-reduce", ("tensor",))
    layers = 4 * CONFIG.model.num_hidden_layers * activations
    # The states of the MLM head, and the maximum, sum and label's logit of the loss, are far smaller.
    assert layers <= summed < layers + activations / 2
    assert not [collective for collective in found if collective.kind != "all-reduce" and "data" in collective.axes]


if __name__ == "__main__":
    LAYOUTS.write_text(table())
