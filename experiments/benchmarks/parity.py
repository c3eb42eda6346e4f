"""Largest differences from transformers with PyTorch, for each of its classes and each file format.

    python experiments/benchmarks/parity.py

A random model of every class (3 layers, hidden size 32, random biases and norms too) is written by transformers and read by
bert_jax. Its outputs in float32 are compared with PyTorch's in float64 on a full, a padded and a one-token row. Differences are
relative to the largest value of an output. "written and read" is the model after a round trip through a format; "exported" is
transformers with the model that bert_jax exports.
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
    "BertForSequenceClassification, multi-label": 3,
    "BertForSequenceClassification, regression": 1,
    "BertForTokenClassification": 4,
    "BertForQuestionAnswering": 2,
    "BertForMultipleChoice": 2,
}
FORMATS = ("hf", "google", "flax", "orbax")
PROBLEM_TYPES = {"multi-label": "multi_label_classification", "regression": "regression"}
HEADS = (
    "mlm", "nsp", "sequence_classification", "multilabel_classification", "regression", "token_classification",
    "question_answering", "multiple_choice",
)  # fmt: skip
"""In the order in which transformers returns their outputs."""


def theirs(model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Every output of a model of transformers."""
    batch = {name: torch.tensor(values).long() for name, values in arrays.items()}
    with torch.no_grad():
        if isinstance(model, transformers.BertForMultipleChoice):
            return [model(**{name: value[None] for name, value in batch.items()}).logits.numpy().reshape(-1, 1)]
        out = model(**batch)
    if isinstance(model, transformers.BertForQuestionAnswering):
        return [np.stack([out.start_logits.numpy(), out.end_logits.numpy()], -1)]
    return [value.numpy() for value in out.to_tuple()]


def ours(bert: bert_jax.Bert, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The same outputs of bert_jax, in the same order."""
    batch = jax.tree.map(jax.numpy.asarray, windows.from_arrays(arrays, bert.config))
    outputs = {name: np.asarray(value) for name, value in compiled.all_outputs(bert.config, bert.params, batch).items()}
    heads = [name for name in HEADS if name in outputs]
    values = [outputs[name] for name in heads or ("hidden", "pooled")]
    return [value[:, 0] if value.shape[1] == 1 and value.ndim == 3 else value for value in values]


def difference(outputs: list[np.ndarray], expected: list[np.ndarray], valid: np.ndarray) -> float:
    """Largest difference, relative to the largest value of each output."""
    worst = 0.0
    for output, other in zip(outputs, expected, strict=True):
        rows = valid if other.shape[:2] == valid.shape else slice(None)
        worst = max(worst, float(np.abs(output[rows] - other[rows]).max() / np.abs(other[rows]).max()))
    return worst


def main() -> None:
    rng = np.random.default_rng(1)
    attention_mask = (np.arange(19) < np.array([[19], [7], [1]])).astype(np.int32)
    arrays = {
        "input_ids": rng.integers(0, 101, (3, 19)),
        "token_type_ids": rng.integers(0, 2, (3, 19)),
        "attention_mask": attention_mask,
    }
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"| class | read | {' | '.join(f'{to}, written and read' for to in FORMATS)} | exported |")
    print(f"|---|{'---|' * (len(FORMATS) + 2)}")
    for name, labels in CLASSES.items():
        torch.manual_seed(0)
        kind, _, problem = name.partition(", ")
        kind = getattr(transformers, kind)
        model = kind(transformers.BertConfig(**SHAPE, num_labels=labels, problem_type=PROBLEM_TYPES.get(problem))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        with tempfile.TemporaryDirectory() as work:
            path = Path(work)
            model.save_pretrained(path / "theirs")
            bert = bert_jax.load(path / "theirs")
            assert problem != "multi-label" or "multilabel_classification" in bert.params
            single = theirs(model, arrays)
            expected = theirs(model.double(), arrays)
            cells = [difference(ours(bert, arrays), expected, attention_mask > 0)]
            for to in FORMATS:
                bert_jax.save(bert, path / to, to=to)
                cells.append(difference(ours(bert_jax.load(path / to), arrays), expected, attention_mask > 0))
            again = theirs(kind.from_pretrained(path / "hf").eval(), arrays)
            cells.append(difference(again, single, attention_mask > 0))
        print(f"| {name} | {' | '.join(f'{cell:.1e}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
