"""The rival of finetune.py: transformers on PyTorch, fine-tuned on the same examples, in the same order, as the same config says.

A plain loop, as fast as one is without changing what is computed: fused AdamW, scaled_dot_product_attention, batches padded to
their longest example, and autocast where bfloat16 is asked for. Examples come from our readers and scores are taken by them, so
that token ids and metrics are equal by construction.
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
    """A task, read."""

    examples: list[Example]
    labels: tuple[str, ...]
    dev: Split


def read(config: FinetuneConfig, tokenizer: Tokenizer) -> Data:
    """The examples that we train on, in the order of the file, and the development split."""
    source = Source(config.task, config.data, config.reading, tokenizer)
    examples, labels = registry.train(source)
    return Data(examples, labels, registry.split(source, "dev", labels))


def steps(config: FinetuneConfig, examples: int) -> int:
    """Steps of a run."""
    return int(examples / config.batch_size * config.epochs)


def load_model(config: FinetuneConfig, labels: Sequence[str]) -> torch.nn.Module:
    """The pretrained encoder under a fresh head.

    Raises:
      SystemExit: something of the encoder was not found in the file, so that it would start from random values.
    """
    head = registry.head(config.task)
    changes: dict[str, Any] = {"num_labels": registry.outputs(config.task, labels)}
    if config.dropout is not None:
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        changes |= dict.fromkeys(rates, config.dropout) | {"classifier_dropout": None}
    kind: Any
    if head == "tag":
        kind = transformers.AutoModelForTokenClassification
    else:
        kind = transformers.AutoModelForSequenceClassification
        changes["problem_type"] = {"classify": "single_label_classification", "regress": "regression"}[head]
    model, found = kind.from_pretrained(
        config.init, **changes, attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True
    )
    fresh = {*found["missing_keys"], *map(str, found["mismatched_keys"])}
    if lost := sorted(name for name in fresh if not name.startswith(("classifier.", "bert.pooler."))):
        raise SystemExit(f"transformers does not find {', '.join(lost)} in {config.init}.")
    return model


def collator(head: str, pad: int, device: str) -> Encode:
    """What pads examples to the longest of them, under the names of transformers."""

    def collate(examples: Sequence[Example]) -> Tensors:
        parts = [example.parts[0] for example in examples]
        shape = len(parts), max(len(part.ids) for part in parts)
        ids, labels = np.full(shape, pad, np.int64), np.full(shape, _IGNORED, np.int64)
        types, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, (part, example) in enumerate(zip(parts, examples, strict=True)):
            size = len(part.ids)
            ids[row, :size], types[row, part.first : size], mask[row, :size] = part.ids, 1, 1
            if head == "tag" and example.label is not None:
                labels[row, :size] = np.where(example.label >= 0, example.label, _IGNORED)
        if head != "tag":
            labels = np.array([example.label for example in examples], np.float32 if head == "regress" else np.int64)
        batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(values).to(device) for name, values in batch.items()}

    return collate


def batches(examples: Sequence[Example], config: FinetuneConfig) -> Iterator[list[Example]]:
    """Endless batches that run on over the epochs, whose order is ours (``bert_jax.tasks.rows.Shuffled``)."""
    orders = (np.random.default_rng([config.seed, epoch]).permutation(len(examples)) for epoch in itertools.count())
    numbers = itertools.chain.from_iterable(orders)
    while True:
        yield [examples[number] for number in itertools.islice(numbers, config.batch_size)]


def optimizer_for(model: torch.nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW as ours is: biases and layer norms do not decay."""
    plain = {name: name.endswith("bias") or "LayerNorm" in name for name, _ in model.named_parameters()}
    groups = [
        {
            "params": [value for name, value in model.named_parameters() if plain[name] == one],
            "weight_decay": 0.0 if one else config.weight_decay,
        }
        for one in (False, True)
    ]
    given = config.optim(1)
    return torch.optim.AdamW(groups, lr=given.peak_lr, betas=(given.b1, given.b2), eps=given.eps, fused=True)


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
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, config.optim(count).warmup_steps, count)
    collate = collator(registry.head(config.task), tokenizer.specials.pad, device)
    narrow = torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16")
    losses = []
    model.train()
    for number, chosen in enumerate(itertools.islice(batches(data.examples, config), count), 1):
        with narrow:
            loss = model(**collate(chosen)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
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
    head = "tag" if isinstance(model, transformers.BertForTokenClassification) else ""

    def outputs(examples: Sequence[Example], size: int) -> list[np.ndarray]:
        order = sorted(range(len(examples)), key=lambda number: -len(examples[number].parts[0].ids))
        found: list[np.ndarray] = [np.empty(0)] * len(examples)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = collate([examples[number] for number in chosen])
            del batch["labels"]
            with torch.inference_mode(), narrow:
                logits = model(**batch).logits.float().cpu().numpy()
            for number, row in zip(chosen, logits, strict=True):
                found[number] = row[: len(examples[number].parts[0].ids)] if head == "tag" else row
        return found

    def seconds(size: int) -> float:
        began = time.perf_counter()
        outputs(dev.examples[:_TRIED], size)
        return time.perf_counter() - began

    seconds(_SIZES[-1])
    best = min(_SIZES, key=seconds)
    began = time.perf_counter()
    scores = dev.score(outputs(dev.examples, best))
    return {"scores": scores, "evaluate_s": time.perf_counter() - began, "evaluate_batch": best}


def compare(config: FinetuneConfig) -> dict[str, Any]:
    """What is trained on, and how far apart the two pretrained encoders are on some of it, in float32."""
    quiet()
    ours = bert_jax.load(config.init)
    assert ours.tokenizer
    data = read(config, ours.tokenizer)
    model = load_model(config, data.labels).eval()
    batch = collator(registry.head(config.task), ours.tokenizer.specials.pad, "cpu")(data.dev.examples[:8])
    ids, types, mask = (batch[name] for name in ("input_ids", "token_type_ids", "attention_mask"))
    with torch.inference_mode():
        states = model.get_submodule("bert")(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state.numpy()
    mine = np.asarray(ours.encode({"ids": ids.numpy(), "types": types.numpy(), "segments": mask.numpy()}).hidden)
    there = mask.numpy() > 0
    return {
        "examples": len(data.examples),
        "dev": len(data.dev.examples),
        "steps": steps(config, len(data.examples)),
        "difference": float(np.abs(states - mine)[there].max()),
        "versions": {"JAX": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def finish(device: str) -> None:
    """Wait for what was started."""
    if device == "cuda":
        torch.cuda.synchronize()


def quiet() -> None:
    """No progress bars, no reports of fresh heads, which are meant to be, and an accelerator is left to PyTorch.

    Classes that transformers imports when they are named are imported here, before the clock starts.
    """
    for name in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "BertForTokenClassification"):
        getattr(transformers, name)
    jax.config.update("jax_platforms", "cpu")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
