"""The train step of BERT-Large, lowered for GPUs and TPUs: what is known of the program without such a device."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import pytest

from bert_jax import sharding
from bert_jax.cluster.compilation import batch_shapes
from bert_jax.config.data import DataConfig
from bert_jax.config.model import ModelConfig
from bert_jax.evaluation import benchmark
from bert_jax.training import optimizers, step
from tests.test_sharding import abstract_mesh, typed
from tests.training.test_step import CONFIG

ROWS_ON_A_DEVICE, LENGTH = 8, 512
# (slice, data, fsdp, tensor)
MESHES = {"1": (1, 1, 1, 1), "8": (1, 1, 8, 1), "256": (2, 8, 8, 2)}
SOME = [
    pytest.param(platform, devices, marks=() if (platform, devices) == ("cuda", "8") else pytest.mark.slow)
    for platform in ("cuda", "tpu")
    for devices in MESHES
]
PRODUCT = re.compile(r"stablehlo\.dot_general .* : \(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>")


@functools.cache
def lowered(platform, devices):
    """The text of the program, the state, and the batch."""
    mesh = abstract_mesh(*MESHES[devices])
    config = dataclasses.replace(
        CONFIG,
        data=DataConfig("", sequence_length=LENGTH, batch_size=ROWS_ON_A_DEVICE * math.prod(MESHES[devices][:3])),
        model=ModelConfig.size("large", dtype="bfloat16", layers="scan"),
    )
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    shapes = jax.eval_shape(lambda: step.init_state(config, optimizer))
    state = jax.tree.map(typed, shapes, sharding.state_shardings(shapes, mesh))
    layout = sharding.batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(*value, sharding=layout) for name, value in batch_shapes(config).items()}
    objective = step.pretraining(config.model, benchmark.policy_without_vocabulary(config))
    with jax.sharding.use_abstract_mesh(mesh):
        train_step = jax.jit(step.make_train_step(objective, optimizer), donate_argnums=0)
        return train_step.trace(state, batch).lower(lowering_platforms=(platform,)).as_text(), state, batch


def split(tensor):
    """Shape and dtype of a tensor type such as 8x512xbf16."""
    *sizes, dtype = tensor.split("x")
    return tuple(map(int, sizes)), dtype


@pytest.mark.parametrize(("platform", "devices"), SOME)
def test_all_products_are_of_bfloat16(platform, devices):
    """GPUs and TPUs sum such products in float32; the results that stay float32 are attention's scores and the logits."""
    text, state, _ = lowered(platform, devices)
    products = [[split(tensor) for tensor in found] for found in PRODUCT.findall(text)]
    assert len(products) == text.count("stablehlo.dot_general")
    assert {dtype for left, right, _ in products for _, dtype in (left, right)} == {"bf16"}
    vocab_size = state.params["bert"]["embeddings"]["word"].shape[0]
    assert sorted(shape[-1] for _, _, (shape, dtype) in products if dtype == "f32") == [LENGTH, vocab_size]


@pytest.mark.parametrize(("platform", "devices"), SOME)
def test_the_state_is_overwritten(platform, devices):
    text, state, batch = lowered(platform, devices)
    arguments = text[text.index("@main(") : text.index(") -> (")].split("%arg")[1:]
    donated = ["tf.aliasing_output" in argument or "jax.buffer_donor" in argument for argument in arguments]
    assert donated == [True] * len(jax.tree.leaves(state)) + [False] * len(batch)
