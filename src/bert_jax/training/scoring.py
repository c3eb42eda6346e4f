"""A model's outputs for examples of a task, each exactly once, on any mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.batch import HostBatch
from bert_jax.config.model import ModelConfig
from bert_jax.tasks.example import Example
from bert_jax.tasks.layout import Placement, RowLayout, once
from bert_jax.training import losses
from bert_jax.training.launchers import Launcher

# Tokens that are scored at a time on each device.
_TOKENS = {"cpu": 4096}
_TOKENS_ELSEWHERE = 65536

Outputs = list[np.ndarray]
"""A model's outputs for each example."""


@dataclasses.dataclass
class Scorer:
    """Computes the outputs of a model, or of each model of an ensemble, for examples.

    Args:
      model: shape of the model.
      layout: how examples share rows.
      launcher: where to compute.
      ensemble: number of models that are scored at a time; 0: one, without an axis for models.
    """

    model: ModelConfig
    layout: RowLayout
    launcher: Launcher
    ensemble: int = 0

    def __post_init__(self) -> None:
        self._logits = self.launcher.compile_rows(functools.partial(losses.task_logits, self.model, head=self.layout.head))
        tokens = _TOKENS.get(jax.default_backend(), _TOKENS_ELSEWHERE) * self.launcher.shards
        self._rows = self.layout.rows(max(1, tokens // self.layout.sequence_length))

    def __call__(
        self, params: Any, examples: Sequence[Example], should_stop: Callable[[], bool] = lambda: False
    ) -> list[Outputs] | None:
        """For each model, the outputs of each example; None if ``should_stop`` returned True."""
        outputs: list[Outputs] = [[np.empty(0)] * len(examples) for _ in range(max(self.ensemble, 1))]
        pending: tuple[Any, dict[int, Placement]] | None = None
        for batch, placements in once(examples, self.layout, self._rows):
            if should_stop():
                return None
            # The device computes this batch while the host reads the one before.
            logits = self._logits(params, self._place(batch))
            if pending:
                self._read(outputs, examples, *pending)
            pending = logits, placements
        if pending:
            self._read(outputs, examples, *pending)
        return outputs

    def _place(self, batch: HostBatch) -> Any:
        rows = self.launcher.rows(self._rows)
        local = {name: value[rows] for name, value in batch.items() if name not in ("labels", "weights")}
        if self.ensemble:
            local = {name: np.broadcast_to(value, (self.ensemble, *value.shape)) for name, value in local.items()}
        return self.launcher.place(local)

    def _read(self, outputs: list[Outputs], examples: Sequence[Example], logits: Any, placements: dict[int, Placement]) -> None:
        values = self.launcher.collect(logits)
        for model_outputs, model_values in zip(outputs, values if self.ensemble else [values], strict=True):
            for index, placement in placements.items():
                model_outputs[index] = np.array(self.layout.outputs(model_values, examples[index], placement))
