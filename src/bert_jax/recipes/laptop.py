"""The laptop variant of a pretraining recipe."""

from __future__ import annotations

import dataclasses

from bert_jax.config.data import DataConfig
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.recipes.budget import with_steps

# Without bias correction, the first updates of Adam are three times as large, and at 2e-3 the loss stays that of the unigram model.
_PEAKS = {"lamb": 1e-2, "bert_adam": 5e-4}
_PEAK = 2e-3


def laptop(config: Config, *, steps: int = 800, corpus: str = "runs/corpus") -> Config:
    """The methods of a recipe at a size that two CPU cores train in minutes, with the settings of ``experiments/quickstart.py``.

    The model has 2 layers of 128 units and no dropout, batches have 64 rows of 64 tokens, and the peak learning rate suits that
    size. Masking, pairs, optimizer, decay, and the shares of warm-up and phases stay those of the recipe; in phases the number of
    tokens, that of rows and the peak keep their ratios to those of the first part.

    Args:
      config: the recipe.
      steps: length of the run.
      corpus: the corpus, with a vocabulary of at most 4,096 tokens.

    Examples:
      >>> config = bert_jax.Config("run", bert_jax.DataConfig("corpus"), phases=(bert_jax.Phase(900_000, sequence_length=512),))
      >>> small = laptop(config)
      >>> small.model.hidden_size, small.phases[0].start, small.phases[0].sequence_length
      (128, 720, 256)
    """
    data, optim = config.data, config.optim
    peak = _PEAKS.get(optim.name, _PEAK)
    phases = [
        dataclasses.replace(
            phase,
            sequence_length=None if phase.sequence_length is None else phase.sequence_length * 64 // data.sequence_length,
            batch_size=None if phase.batch_size is None else max(8, phase.batch_size * 64 // data.batch_size // 8 * 8),
            accumulate=None,
            corpus=None,
            peak_lr=None if phase.peak_lr is None else phase.peak_lr * peak / optim.peak_lr,
        )
        for phase in config.phases
    ]
    model = dataclasses.replace(
        config.model,
        vocab_size=4096,
        num_hidden_layers=2,
        hidden_size=128,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=max([128, *(phase.sequence_length or 0 for phase in phases)]),
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        dtype="float32",
    )
    small = dataclasses.replace(
        config,
        run=f"{config.run}_laptop",
        data=dataclasses.replace(
            DataConfig(corpus, sequence_length=64, batch_size=64),
            pairs=data.pairs,
            packing=data.packing,
            random_next=data.random_next,
        ),
        model=model,
        optim=dataclasses.replace(optim, peak_lr=peak, accumulate=1),
        train=TrainConfig(steps=config.train.steps, eval_every=steps // 2, save_every=steps // 2, keep=1, eval_batches=20),
        phases=tuple(phases),
    )
    return with_steps(small, steps)
