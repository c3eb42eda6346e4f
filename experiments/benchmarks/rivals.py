"""Programs that train or run the same BERT on the same batches, each in its own process; step.py starts them.

    python rivals.py NAME WORK

WORK contains ``options.json`` and the batches as ``.npz``. The program compiles, warms up and prints its measurements so far as one
line of JSON. Then, for each line on standard input, it runs one step and prints its seconds.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]
Step = Callable[[], Any]
"""Runs one step and waits for its result."""


def ours(options: dict[str, Any], batches: list[Batch]) -> Step:
    """bert_jax as ``bert-jax pretrain`` compiles it: masks, clipping, optimizer and metrics in one donated program."""
    import itertools

    import jax

    import bert_jax
    from bert_jax.training import launchers, optimizers, step

    config = our_config(options, batches[0])
    launcher = launchers.launch(config)
    placed = itertools.cycle([launcher.place(batch) for batch in batches])
    with launcher.context():
        if options["what"] == "encode":
            params = jax.jit(lambda: bert_jax.models.heads.init_params(config.model, jax.random.key(0)))()
            encode = jax.jit(lambda params, batch: bert_jax.encode(config.model, params, batch))
            return lambda: jax.block_until_ready(encode(params, next(placed)))
        optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
        state = jax.jit(lambda: step.init_state(config, optimizer))()
        policy = bert_jax.ResolvedMaskPolicy(config.mask, mask_id=103, vocab_size=config.model.vocab_size)
        objective = step.pretraining(config.model, policy)
        compiled = launcher.compile_step(step.make_train_step(objective, optimizer, axis_name=launcher.axis_name))

    def run() -> float:
        nonlocal state
        with launcher.context():
            state, metrics = compiled(state, next(placed))
            return float(metrics["loss"])

    return run


def our_config(options: dict[str, Any], batch: Batch) -> Any:
    """The config of the benchmark."""
    import bert_jax

    rows, length = batch["input_ids"].shape
    model = bert_jax.ModelConfig.size(
        options["size"],
        dtype=options["dtype"],
        hidden_dropout_prob=options["dropout"],
        attention_probs_dropout_prob=options["dropout"],
        **options["model"],
    )
    return bert_jax.Config(
        run="none",
        data=bert_jax.DataConfig("none", sequence_length=length, batch_size=rows),
        model=model,
        optim=bert_jax.OptimConfig(name="adamw", warmup_steps=0),
        train=bert_jax.TrainConfig(steps=1_000_000),
    )


def transformers(options: dict[str, Any], batches: list[Batch], *, compiled: bool = False) -> Step:
    """BertForPreTraining of transformers on PyTorch: scaled_dot_product_attention, autocast, fused AdamW, clipping."""
    import itertools

    import torch
    from transformers import BertConfig, BertForPreTraining

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = BertForPreTraining._from_config(_their_config(BertConfig, options), attn_implementation="sdpa").to(device)
    forward = torch.compile(model) if compiled else model
    narrow = torch.autocast(device, torch.bfloat16, enabled=options["dtype"] == "bfloat16")
    inputs = ("input_ids", "token_type_ids", "attention_mask")
    used = inputs if options["what"] == "encode" else (*inputs, "labels", "next_sentence_label")
    tensors = [{name: torch.as_tensor(batch[name]).to(device) for name in used} for batch in batches]
    cycle = itertools.cycle(tensors)

    def finish(value: Any) -> float:
        return float(value)

    if options["what"] == "encode":
        encoder = torch.compile(model.bert.eval()) if compiled else model.bert.eval()

        def encode() -> float:
            batch = {
                name: value for name, value in next(cycle).items() if name in ("input_ids", "token_type_ids", "attention_mask")
            }
            with torch.inference_mode(), narrow:
                return finish(encoder(**batch).last_hidden_state[0, 0, 0])

        return encode
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def run() -> float:
        with narrow:
            loss = forward(**next(cycle)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return finish(loss.detach())

    return run


def transformers_compiled(options: dict[str, Any], batches: list[Batch]) -> Step:
    """The same with torch.compile."""
    return transformers(options, batches, compiled=True)


def flax(options: dict[str, Any], batches: list[Batch]) -> Step:
    """FlaxBertForPreTraining (transformers up to 4.57), in one donated jit with Optax's AdamW and clipping."""
    import itertools

    import jax
    import jax.numpy as jnp
    import optax
    from transformers import BertConfig, FlaxBertForPreTraining

    config = _their_config(BertConfig, options)
    model = FlaxBertForPreTraining(config, dtype=jnp.dtype(options["dtype"]), _do_init=True)
    inputs = ("input_ids", "token_type_ids", "attention_mask")
    cycle = itertools.cycle([{name: jnp.asarray(value) for name, value in batch.items()} for batch in batches])
    if options["what"] == "encode":
        encode = jax.jit(lambda params, batch: model(**batch, params=params, output_hidden_states=True).hidden_states[-1])
        inputs_cycle = itertools.cycle([{name: jnp.asarray(batch[name]) for name in inputs} for batch in batches])
        return lambda: jax.block_until_ready(encode(model.params, next(inputs_cycle)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))
    state = (model.params, optimizer.init(model.params), jax.random.key(0))

    def step(state: Any, batch: Any) -> Any:
        params, moments, key = state
        key, dropout = jax.random.split(key)

        def loss(params: Any) -> Any:
            mlm_logits, nsp_logits = model(
                **{name: batch[name] for name in inputs}, params=params, dropout_rng=dropout, train=True
            )[:2]
            predicted = batch["labels"] >= 0
            mlm_losses = optax.softmax_cross_entropy_with_integer_labels(mlm_logits, jnp.maximum(batch["labels"], 0))
            nsp_losses = optax.softmax_cross_entropy_with_integer_labels(nsp_logits, batch["next_sentence_label"])
            return (mlm_losses * predicted).sum() / predicted.sum() + nsp_losses.mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments, key), value

    compiled = jax.jit(step, donate_argnums=0)

    def run() -> float:
        nonlocal state
        state, value = compiled(state, next(cycle))
        return float(value)

    return run


def keras(options: dict[str, Any], batches: list[Batch]) -> Step:
    """KerasHub's BertMaskedLM on JAX, through its own train_on_batch; it has no NSP loss."""
    import itertools
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    import keras_hub

    if options["dtype"] == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    layers, width, heads = _shape(options)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522, num_layers=layers, num_heads=heads, hidden_dim=width, intermediate_dim=4 * width,
        dropout=options["dropout"], max_sequence_length=512,
    )  # fmt: skip
    cycle = itertools.cycle(batches)

    def inputs(batch: Batch) -> Batch:
        return {
            "token_ids": batch["input_ids"],
            "segment_ids": batch["token_type_ids"],
            "padding_mask": batch["attention_mask"],
        }

    if options["what"] == "encode":
        return lambda: np.asarray(backbone.predict_on_batch(inputs(next(cycle)))["sequence_output"])
    model = keras_hub.models.BertMaskedLM(backbone, preprocessor=None)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def run() -> float:
        batch = next(cycle)
        labels, weights = batch["mlm_ids"], batch["mlm_weights"]
        return model.train_on_batch(inputs(batch) | {"mask_positions": batch["mlm_positions"]}, labels, weights)

    return run


def matmul(options: dict[str, Any], batches: list[Batch]) -> Step:
    """One square product with float32 results, as the attainable speed of the machine."""
    import jax
    import jax.numpy as jnp

    del batches
    x, y = jax.random.normal(jax.random.key(0), (2, *(options["matmul"],) * 2), jnp.dtype(options["dtype"]))
    product = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))
    return lambda: jax.block_until_ready(product(x, y))


def _shape(options: dict[str, Any]) -> tuple[int, int, int]:
    return tuple(options["shape"])  # type: ignore[return-value]


def _their_config(cls: Any, options: dict[str, Any]) -> Any:
    layers, width, heads = _shape(options)
    return cls(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width,
        hidden_dropout_prob=options["dropout"], attention_probs_dropout_prob=options["dropout"],
    )  # fmt: skip


RIVALS: dict[str, Callable[[dict[str, Any], list[Batch]], Step]] = {
    "matmul": matmul,
    "bert_jax": ours,
    "transformers": transformers,
    "torch.compile": transformers_compiled,
    "FlaxBert": flax,
    "KerasHub": keras,
}


def main(name: str, work: Path) -> None:
    options = json.loads((work / "options.json").read_text())
    # bert_jax masks inside the step and may pack; the others get masked rows.
    kind = "ours" if name == "bert_jax" else "theirs"
    batches = [dict(np.load(path)) for path in sorted(work.glob(f"{kind}-*.npz"))]
    start = time.perf_counter()
    step = RIVALS[name](options, batches)
    step()
    first = time.perf_counter() - start
    for _ in range(options["warmup"]):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"first_step_s": first, "batches": len(batches), "peak_gib": _device_peak() or peak}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(json.dumps(time.perf_counter() - start), flush=True)


def _device_peak() -> float | None:
    """Peak GiB of an accelerator's memory; None on a CPU, where the resident size of the process is used."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated() / 2**30
    if "jax" in sys.modules:
        stats = sys.modules["jax"].local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / 2**30 if stats else None
    return None


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
