"""Fine-tuning with transformers and PyTorch, on the same examples in the same order and with the same config; see finetune.py.

A plain training loop with the usual optimizations that keep the results: fused AdamW, scaled_dot_product_attention, batches padded
to their longest example, and autocast for bfloat16. Examples and scores come from bert_jax, so that token ids and metrics are
equal by construction.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import torch
import transformers

import bert_jax
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.tasks import registry
from bert_jax.tasks.example import Example, Source, Split
from bert_jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    from finetune import Stopwatch

Tensors = dict[str, torch.Tensor]
Encode = Callable[[Sequence[Example]], Tensors]

# Of cross-entropy in PyTorch: no loss here.
_IGNORED = -100
_SIZES = (8, 16, 32, 64, 128)
_TRIED = 256


class Data(NamedTuple):
    """Examples of a task."""

    examples: list[Example]
    labels: tuple[str, ...]
    dev: Split


def read(config: FinetuneConfig, tokenizer: Tokenizer) -> Data:
    """The training examples, in the order of the file, and the development split."""
    source = Source(config.data, config.task_data, tokenizer)
    task = registry.get(config.task)
    examples, labels = task.train(source)
    return Data(examples, labels, task.split(source, "dev", labels))


def steps(config: FinetuneConfig, examples: int) -> int:
    """Steps of a run."""
    return int(examples * config.epochs / config.batch_size)


def load_model(config: FinetuneConfig, labels: Sequence[str]) -> torch.nn.Module:
    """The pretrained encoder under a fresh head.

    Raises:
      SystemExit: something of the encoder was not found in the file, so that it would start from random values.
    """
    task = registry.get(config.task)
    changes: dict[str, Any] = {"num_labels": task.outputs(labels)}
    if config.model.dropout is not None:
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        changes |= dict.fromkeys(rates, config.model.dropout) | {"classifier_dropout": None}
    kind: Any
    if task.head == "token_classification":
        kind = transformers.AutoModelForTokenClassification
    else:
        kind = transformers.AutoModelForSequenceClassification
        changes["problem_type"] = {
            "sequence_classification": "single_label_classification",
            "regression": "regression",
        }[task.head]
    model, loading = kind.from_pretrained(
        config.init, **changes, attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True
    )
    fresh = {*loading["missing_keys"], *map(str, loading["mismatched_keys"])}
    if lost := sorted(name for name in fresh if not name.startswith(("classifier.", "bert.pooler."))):
        raise SystemExit(f"transformers does not find {', '.join(lost)} in {config.init}.")
    return model


def collator(head: str, pad: int, device: str) -> Encode:
    """A function that pads examples to the longest of them, with the names of transformers."""

    def collate(examples: Sequence[Example]) -> Tensors:
        texts = [example.texts[0] for example in examples]
        shape = len(texts), max(len(text.ids) for text in texts)
        ids, labels = np.full(shape, pad, np.int64), np.full(shape, _IGNORED, np.int64)
        types, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, (text, example) in enumerate(zip(texts, examples, strict=True)):
            size = len(text.ids)
            ids[row, :size], types[row, text.first_length : size], mask[row, :size] = text.ids, 1, 1
            if head == "token_classification" and example.label is not None:
                labels[row, :size] = np.where(example.label >= 0, example.label, _IGNORED)
        if head != "token_classification":
            labels = np.array([example.label for example in examples], np.float32 if head == "regression" else np.int64)
        batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(values).to(device) for name, values in batch.items()}

    return collate


def batches(examples: Sequence[Example], config: FinetuneConfig) -> Iterator[list[Example]]:
    """Endless batches over all epochs, in the order of `bert_jax.tasks.layout.Shuffled`."""
    orders = (np.random.default_rng([config.seed, epoch]).permutation(len(examples)) for epoch in itertools.count())
    indices = itertools.chain.from_iterable(orders)
    while True:
        yield [examples[index] for index in itertools.islice(indices, config.batch_size)]


def optimizer_for(model: torch.nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW as in bert_jax, without weight decay of biases and layer norms."""
    excluded = {name: name.endswith("bias") or "LayerNorm" in name for name, _ in model.named_parameters()}
    groups = [
        {
            "params": [value for name, value in model.named_parameters() if excluded[name] == is_excluded],
            "weight_decay": 0.0 if is_excluded else config.optim.weight_decay,
        }
        for is_excluded in (False, True)
    ]
    optim = config.optim_config(1)
    return torch.optim.AdamW(groups, lr=optim.peak_lr, betas=(optim.b1, optim.b2), eps=optim.eps, fused=True)


def train(config: FinetuneConfig, watch: Stopwatch, *, threads: int) -> dict[str, Any]:
    """One run: its scores, and its seconds from the moment when everything is imported."""
    quiet()
    torch.set_num_threads(threads)
    tokenizer = bert_jax.load(config.init).tokenizer
    assert tokenizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.zeros(1, device=device)
    watch.mark("ready")
    data = read(config, tokenizer)
    torch.manual_seed(config.seed)
    model = load_model(config, data.labels).to(device)
    watch.mark("loaded")
    count = steps(config, len(data.examples))
    optimizer = optimizer_for(model, config)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, config.optim_config(count).warmup_steps, count)
    collate = collator(registry.get(config.task).head, tokenizer.special_tokens.pad, device)
    narrow = torch.autocast(device, torch.bfloat16, enabled=config.model.dtype == "bfloat16")
    losses = []
    model.train()
    for number, chosen in enumerate(itertools.islice(batches(data.examples, config), count), 1):
        with narrow:
            loss = model(**collate(chosen)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if number in (1, count):
            finish(device)
            watch.mark("last") if number == count else None
            watch.mark("first") if number == 1 else None
    return watch.report() | {"steps": count, "loss": float(losses[-1])} | evaluate(model, data.dev, collate, narrow)


def evaluate(model: torch.nn.Module, dev: Split, collate: Encode, narrow: torch.autocast) -> dict[str, Any]:
    """Scores by the task's own metric, and how long they take with the batch size that is fastest here."""
    model.eval()
    head = "token_classification" if isinstance(model, transformers.BertForTokenClassification) else ""

    def outputs(examples: Sequence[Example], size: int) -> list[np.ndarray]:
        order = sorted(range(len(examples)), key=lambda index: -len(examples[index].texts[0].ids))
        results: list[np.ndarray] = [np.empty(0)] * len(examples)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = collate([examples[index] for index in chosen])
            del batch["labels"]
            with torch.inference_mode(), narrow:
                logits = model(**batch).logits.float().cpu().numpy()
            for index, row in zip(chosen, logits, strict=True):
                results[index] = row[: len(examples[index].texts[0].ids)] if head == "token_classification" else row
        return results

    def seconds(size: int) -> float:
        start_time = time.perf_counter()
        outputs(dev.examples[:_TRIED], size)
        return time.perf_counter() - start_time

    seconds(_SIZES[-1])
    best = min(_SIZES, key=seconds)
    start_time = time.perf_counter()
    scores = dev.score(outputs(dev.examples, best))
    return {"scores": scores, "evaluate_s": time.perf_counter() - start_time, "evaluate_batch": best}


def compare(config: FinetuneConfig) -> dict[str, Any]:
    """Sizes of the data, and the largest difference between the states of the two pretrained encoders, in float32."""
    quiet()
    ours = bert_jax.load(config.init)
    assert ours.tokenizer
    data = read(config, ours.tokenizer)
    model = load_model(config, data.labels).eval()
    batch = collator(registry.get(config.task).head, ours.tokenizer.special_tokens.pad, "cpu")(data.dev.examples[:8])
    ids, types, mask = (batch[name] for name in ("input_ids", "token_type_ids", "attention_mask"))
    with torch.inference_mode():
        states = model.get_submodule("bert")(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state.numpy()
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    hidden = np.asarray(ours.encode(arrays).hidden)
    valid = mask.numpy() > 0
    return {
        "examples": len(data.examples),
        "dev": len(data.dev.examples),
        "steps": steps(config, len(data.examples)),
        "difference": float(np.abs(states - hidden)[valid].max()),
        "versions": {"JAX": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def finish(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def quiet() -> None:
    """Switch off progress bars and reports of new heads, and leave an accelerator to PyTorch.

    Classes that transformers imports lazily are imported here, before the time is measured.
    """
    for name in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "BertForTokenClassification"):
        getattr(transformers, name)
    jax.config.update("jax_platforms", "cpu")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
