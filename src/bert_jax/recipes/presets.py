"""The arithmetic of other programs by name: what each of them computes differently, as fields of a config.

Sources: google-research/bert at fe35475 (2018-10-31) and eedf571 (2020-03-11), ``optimization.py``, ``modeling.py`` and
``tokenization.py``; transformers 5 (``Trainer`` with ``BertForPreTraining``); NVIDIA DeepLearningExamples, PyTorch BERT at 115867b,
``run_pretraining.py``, ``schedulers.py`` and ``fused_lamb.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

from bert_jax.config.run import Config
from bert_jax.errors import UserError

Preset = Literal["google2018", "google2020", "hf", "nvidia", "modern"]
"""The original's first release and last version, transformers, NVIDIA's PyTorch BERT, and what recent recipes have in common."""
PRESETS: tuple[str, ...] = get_args(Preset)


class Choice(NamedTuple):
    """Something that programs do differently."""

    name: str
    values: tuple[Any, ...]
    """Of each preset, in the order of ``PRESETS``."""
    field: str | None = None
    """The field of a config that takes these values; None: another setting, named in ``note``, or none."""
    note: str = ""


CHOICES = (
    Choice("optimizer", ("bert_adam", "bert_adam", "adamw", "lamb", "adamw"), "optim.name", "all but bert_adam correct the bias"),
    Choice("second moment", (0.999, 0.999, 0.999, 0.999, 0.98), "optim.b2"),
    Choice("added to the denominator", (1e-6, 1e-6, 1e-8, 1e-6, 1e-6), "optim.eps"),
    Choice("decay starts", ("from_zero", "from_zero", "from_peak", "from_zero", "from_peak"), "optim.decay"),
    Choice("power of the decay", (1, 1, 1, 0.5, 1), "optim.decay_power"),
    Choice("first update", (0, 0, 0, 1, 0), "optim.first_update", "0: its rate is 0 where there is a warm-up"),
    Choice(
        "mean of the losses",
        ("replica", "replica", "replica", "replica", "batch"),
        note="optim.replicas, which presets leave as it is, except that modern sets 1",
    ),
    Choice("clip each replica", (True, True, False, False, False), "optim.clip_replicas", "otherwise the average is clipped"),
    Choice("GELU", ("gelu", "gelu_tanh", "gelu", "gelu", "gelu"), "model.hidden_act", "gelu_tanh since 2019-02-07 in the original"),
    Choice(
        "initial values",
        ("truncated_normal", "truncated_normal", "normal", "normal", "truncated_normal"),
        "model.initializer",
        "transformers also sets the row of [PAD] to 0, which no field does",
    ),
    Choice("random replacements", ("any",) * 5, "mask.random_tokens", "any token of the vocabulary"),
    Choice(
        "what is added to masked scores",
        ("-10000", "-10000", "smallest", "-10000", "smallest"),
        note="smallest float; no field: a masked probability is exactly 0 with either",
    ),
    Choice(
        "longest word",
        (100, 200, 100, 100, 100),
        note="bert-jax vocab --max-word-length N; a longer word becomes [UNK]",
    ),
)
"""Everything that presets set or that the table shows."""


def apply(config: Config, preset: Preset) -> Config:
    """The config with the arithmetic of another program.

    Rates, lengths, sizes, dropout, weight decay and the mask policy's shares stay those of the config: they belong to a recipe. So
    does ``optim.replicas``, the number of devices of the run that is reproduced; "modern" sets it to 1.

    Args:
      config: a pretraining run.
      preset: name of the program.

    Raises:
      UserError: there is no such preset.

    Examples:
      >>> config = bert_jax.Config("run", bert_jax.DataConfig("corpus"))
      >>> changed = apply(config, "hf")
      >>> changed.optim.name, changed.optim.decay, changed.model.initializer
      ('adamw', 'from_peak', 'normal')
    """
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    sections: dict[str, dict[str, Any]] = {}
    for choice in CHOICES:
        if choice.field is not None:
            section, name = choice.field.split(".")
            sections.setdefault(section, {})[name] = choice.values[PRESETS.index(preset)]
    if preset == "modern":
        sections["optim"]["replicas"] = 1
    changed = {section: dataclasses.replace(getattr(config, section), **fields) for section, fields in sections.items()}
    return dataclasses.replace(config, **changed)
