"""Largest differences from transformers and PyTorch, for each of their classes and each format of ours.

    python experiments/benchmarks/parity.py

A model of every class is made at random (3 layers, 32 wide, biases and norms at random too), written by transformers,
read by us, and compared in float32 with PyTorch in float64 on a full, a padded and a one-token row. Differences are
relative to the largest value of an output. "out and in" sends the model through a format and back; "read again" is
transformers on what we export.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

import bert_jax
from bert_jax.data import windows
from bert_jax.inference import compiled

SHAPE = dict(
    vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=19,
    initializer_range=0.2,
)  # fmt: skip
CLASSES = {
    "BertModel": 2,
    "BertForPreTraining": 2,
    "BertForMaskedLM": 2,
    "BertForNextSentencePrediction": 2,
    "BertForSequenceClassification": 3,
    "BertForSequenceClassification, regression": 1,
    "BertForTokenClassification": 4,
    "BertForQuestionAnswering": 2,
    "BertForMultipleChoice": 2,
}
FORMATS = ("hf", "google", "flax", "orbax")


def theirs(model: torch.nn.Module, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Every output of a model of transformers."""
    names = {"input_ids": "ids", "token_type_ids": "types", "attention_mask": "segments"}
    batch = {name: torch.tensor(given[ours]).long() for name, ours in names.items()}
    with torch.no_grad():
        if isinstance(model, transformers.BertForMultipleChoice):
            return [model(**{name: value[None] for name, value in batch.items()}).logits.numpy().reshape(-1, 1)]
        out = model(**batch)
    if isinstance(model, transformers.BertForQuestionAnswering):
        return [np.stack([out.start_logits.numpy(), out.end_logits.numpy()], -1)]
    return [value.numpy() for value in out.to_tuple()]


def ours(bert: bert_jax.Bert, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The same outputs of ours, in the same order."""
    batch = jax.tree.map(jax.numpy.asarray, windows.from_arrays(given, bert.config))
    found = {name: np.asarray(value) for name, value in compiled.every(bert.config, bert.params, batch).items()}
    heads = [name for name in ("mlm", "nsp", "classify", "regress", "tag", "span", "choose") if name in found]
    values = [found[name] for name in heads or ("hidden", "pooled")]
    return [value[:, 0] if value.shape[1] == 1 and value.ndim == 3 else value for value in values]


def difference(found: list[np.ndarray], expected: list[np.ndarray], valid: np.ndarray) -> float:
    """Largest, relative to the largest value of each output."""
    worst = 0.0
    for mine, other in zip(found, expected, strict=True):
        rows = valid if other.shape[:2] == valid.shape else slice(None)
        worst = max(worst, float(np.abs(mine[rows] - other[rows]).max() / np.abs(other[rows]).max()))
    return worst


def main() -> None:
    rng = np.random.default_rng(1)
    segments = (np.arange(19) < np.array([[19], [7], [1]])).astype(np.int32)
    given = {"ids": rng.integers(0, 101, (3, 19)), "types": rng.integers(0, 2, (3, 19)), "segments": segments}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"| class | read | {' | '.join(f'{to}, out and in' for to in FORMATS)} | read again |")
    print(f"|---|{'---|' * (len(FORMATS) + 2)}")
    for name, labels in CLASSES.items():
        torch.manual_seed(0)
        kind = getattr(transformers, name.partition(",")[0])
        model = kind(transformers.BertConfig(**SHAPE, num_labels=labels)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        with tempfile.TemporaryDirectory() as work:
            path = Path(work)
            model.save_pretrained(path / "theirs")
            bert = bert_jax.load(path / "theirs")
            single = theirs(model, given)
            expected = theirs(model.double(), given)
            cells = [difference(ours(bert, given), expected, segments > 0)]
            for to in FORMATS:
                bert_jax.save(bert, path / to, to=to)
                cells.append(difference(ours(bert_jax.load(path / to), given), expected, segments > 0))
            again = theirs(kind.from_pretrained(path / "hf").eval(), given)
            cells.append(difference(again, single, segments > 0))
        print(f"| {name} | {' | '.join(f'{cell:.1e}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
