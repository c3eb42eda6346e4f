"""Loading and saving a model with its methods on texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from etils import epath

from bert_jax import convert
from bert_jax.convert import Format, Head
from bert_jax.inference import verification
from bert_jax.inference.bert import Bert
from bert_jax.tokenizers import AddedToken


def load(
    path: epath.PathLike,
    *,
    partial: bool = False,
    head: Head | None = None,
    vocab: epath.PathLike | None = None,
    added_tokens: Sequence[str | AddedToken] = (),
) -> Bert:
    """Load a model: a run of this package, a Hugging Face directory, a TensorFlow checkpoint of the original, or a Flax file.

    The format is detected from the files. Neither TensorFlow nor PyTorch is needed, and nothing in a file is executed.
    A [`BertWarning`][bert_jax.BertWarning] reports anything doubtful.

    Args:
      path: a directory, or a file of weights with its config and vocabulary beside it.
      partial: ignore tensors that do not match, and leave what is missing at its initial values, if half of the encoder matches.
      head: the kind of a classifier ("sequence_classification", "multilabel_classification", "regression",
        "token_classification", "multiple_choice") that ``config.json`` does not specify.
      vocab: directory of an extension of the model's vocabulary, made by ``bert-jax vocab --extend``; the model gets its tokens, as
        [`extend`][bert_jax.models.vocabulary.extend] does it.
      added_tokens: tokens to add to the vocabulary, as [`add_tokens`][bert_jax.models.vocabulary.add_tokens] does it.

    Raises:
      UserError: there is no model, or several, or one that is not BERT, or its files do not fit the encoder; or ``vocab`` is not an
        extension of its vocabulary. A head or labels that do not fit are a warning, and an error of the methods that need them.
      RunError: every checkpoint of a run is damaged.

    Examples:
      >>> bert = bert_jax.load("bert-base-uncased")  # doctest: +SKIP
      >>> bert.fill_mask("Paris is the [MASK] of France.", top_k=1)  # doctest: +SKIP
      [[Prediction(token='capital', probability=0.9969...)]]
    """
    return Bert(**vars(convert.read(path, partial=partial, head=head, vocab=vocab, added_tokens=added_tokens)))


def save(bert: Bert, path: epath.PathLike, *, to: Format, verify: bool = False, partial: bool = False) -> dict[str, Any]:
    """Write a model as a new directory: "hf" (safetensors), "google" (TensorFlow), "flax" (msgpack) or "orbax".

    Args:
      bert: the model.
      path: directory to create.
      to: its format.
      verify: read the directory again and compare ids of tokens and every output on probe texts; a directory of "hf" is also
        read by transformers where it is installed (``pip install transformers torch``), in a process of its own.
      partial: write a model of which a part could not be read, such as a head or the labels, without that part.

    Returns:
      The content of ``conversion.json``: name, shape and SHA-256 of each tensor, and with ``verify`` for each reader its name and
      version, and the largest absolute difference of each output.

    Raises:
      UserError: ``path`` exists; a part of the model could not be read; or ``verify`` is given for a model without a vocabulary.
      RunError: an output is not finite, a reader finds other ids or outputs, or a checkpoint cannot be written.

    Examples:
      >>> import tempfile
      >>> from bert_jax.models import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> bert = bert_jax.Bert(config, init_params(config, jax.random.key(0)))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     report = bert_jax.save(bert, f"{directory}/model", to="hf")
      ...     bert_jax.load(f"{directory}/model").config == config
      True
    """
    compare = functools.partial(verification.compare, bert, is_hf=to == "hf") if verify else None
    return convert.write(bert, path, to, partial=partial, compare=compare)
