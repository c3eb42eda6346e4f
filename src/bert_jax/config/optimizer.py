"""Optimizer, learning-rate schedule, clipping and gradient accumulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bert_jax.config.validation import check_choices, require_positive, require_share
from bert_jax.errors import UserError


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, schedule, clipping and accumulation; the defaults are the paper's (Devlin et al. 2018, appendix A.2).

    Raises:
      UserError: a value is outside its range.

    Examples:
      >>> OptimConfig(name="lamb", peak_lr=6e-3).decay
      'from_zero'
    """

    name: Literal["bert_adam", "adamw", "lamb", "muon", "schedule_free"] = "bert_adam"
    """Optimizer:
    "bert_adam": the original's AdamW, without bias correction;
    "adamw": AdamW with bias correction;
    "lamb": AdamW with trust ratios per layer;
    "muon": orthogonalized updates of the layers' matrices, with a momentum of 0.95; "adamw" for the other parameters;
    "schedule_free": AdamW with averaged iterates and a learning rate that does not decay."""
    peak_lr: float = 1e-4
    """Learning rate at the end of warm-up."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up from 0."""
    decay: Literal["from_zero", "from_peak"] = "from_zero"
    """Linear decay to 0 at the last step:
    "from_zero": the original's line, with its peak at step 0, so that the rate drops at the end of warm-up;
    "from_peak": a line with its peak at the end of warm-up."""
    decay_power: float | int = 1
    """Power of the decay; 0.5 in NVIDIA's pretraining."""
    first_update: Literal[0, 1] = 0
    """Number of the first update in the schedule: 0, with which the first rate of a warm-up is 0; or 1, as NVIDIA counts."""
    b1: float = 0.9
    """Decay rate of the first moment."""
    b2: float = 0.999
    """Decay rate of the second moment."""
    eps: float = 1e-6
    """Constant added to the denominator of the update."""
    weight_decay: float = 0.01
    """Decoupled weight decay of all parameters except layer norms and biases."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    replicas: int = 1
    """Parts of a batch whose losses have means of their own, which are averaged, as the original does over TPU cores.
    Row r belongs to part r mod replicas; the parts are computed one after the other, on any number of devices.
    1: means over the whole batch, in which all predictions weigh the same."""
    clip_replicas: bool = False
    """Clip the gradients of each of these parts before they are averaged, as the original does, instead of their average."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below it (layer-wise decay); 1: none."""
    accumulate: int = 1
    """Micro-batches whose gradients make one step; the result is that of the whole batch at once."""

    def __post_init__(self) -> None:
        for name in ("peak_lr", "eps", "clip_norm", "accumulate", "replicas", "decay_power"):
            require_positive(f"optim.{name}", getattr(self, name))
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optim.{name} is {getattr(self, name)}; it must not be negative.")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optim.layer_decay is {self.layer_decay}; it must lie in (0, 1].")
        if self.replicas > 1 and self.accumulate > 1:
            raise UserError(
                f"optim.replicas is {self.replicas} and optim.accumulate {self.accumulate}; replicas are computed one after the "
                "other already, so leave accumulate out."
            )
        require_share("optim.b1", self.b1)
        require_share("optim.b2", self.b2)
        check_choices(self, "optim")
        if self.name == "schedule_free" and self.b1 == 0:
            raise UserError("optim.b1 is 0, but optim.name is schedule_free, which needs a value above 0.")
