"""Throughput of a run: tokens per second, examples, and the share of the devices' peak arithmetic (MFU)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import jax
import numpy as np

from bert_jax.config.model import ModelConfig
from bert_jax.models.arithmetic import forward_flop
from bert_jax.processes import Group
from bert_jax.training.job import Counts
from bert_jax.training.logging import Scores

# Dense bfloat16 FLOP/s without sparsity, from NVIDIA's data sheets; the first name in a device's kind counts.
_GPUS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
}


class Throughput:
    """Counts what the steps of a run contain, and divides it by the time that they take.

    Args:
      flop: takes the counts and the metrics of steps and returns the floating-point operations of their matrix products.
      peak: FLOP/s of all devices together; None where it is not known.
      clock: seconds.
      total: takes what this process has counted and returns what all have.

    Examples:
      >>> seconds = iter([0.0, 2.0])
      >>> throughput = Throughput(lambda counts, metrics: 6e9 * counts.tokens, peak=1e13, clock=lambda: next(seconds))
      >>> throughput.add(Counts(tokens=900, examples=10, slots=1000))
      >>> throughput.take({})
      {'tokens_per_second': 450.0, 'examples_per_step': 10.0, 'fill': 0.9, 'mfu': 0.27}
    """

    def __init__(
        self,
        flop: Callable[[Counts, Scores], float],
        *,
        peak: float | None,
        clock: Callable[[], float] = time.perf_counter,
        total: Callable[[Counts], Counts] = lambda counts: counts,
    ) -> None:
        self._flop, self._peak, self._clock, self._total = flop, peak, clock, total
        self._began, self._steps = clock(), 0
        self._seen = np.zeros(len(Counts._fields), int)

    def add(self, counts: Counts) -> None:
        """Count a step."""
        self._seen, self._steps = self._seen + np.array(counts), self._steps + 1

    def exclude(self, seconds: float) -> None:
        """Leave out time that did not belong to training."""
        self._began += seconds

    def take(self, metrics: Scores) -> Scores:
        """The values of a line, over the steps since the last one; there must be at least one.

        Args:
          metrics: those of the last step.
        """
        now, seen = self._clock(), self._total(Counts(*self._seen.tolist()))
        seconds = now - self._began
        values = {
            "tokens_per_second": seen.tokens / seconds,
            "examples_per_step": seen.examples / self._steps,
            "fill": seen.tokens / seen.slots,
        }
        if self._peak:
            values["mfu"] = self._flop(seen, metrics) / (seconds * self._peak)
        self._began, self._steps, self._seen = now, 0, np.zeros_like(self._seen)
        return values


def count_all(group: Group, first_row: int, counts: Counts) -> Counts:
    """What all processes have counted; processes with the same first row of a batch have the same rows, which count once."""
    by_rows = {first: own for first, *own in group.gather("counting tokens", [first_row, *counts])}
    return Counts(*np.sum([*by_rows.values()], axis=0).tolist())


def training_flop(model: ModelConfig, counts: Counts, *, predictions: int | float = 0, frozen: bool = False) -> float:
    """Floating-point operations of the matrix products of training steps: three times those of the forward pass.

    Examples count with their mean length, so that the products of attention are slightly underestimated where lengths differ.

    Args:
      model: the shape.
      counts: what the steps contain.
      predictions: number of predicted tokens.
      frozen: there is only a forward pass through the encoder.
    """
    if not counts.examples:
        return 0.0
    phases = forward_flop(model, np.full(counts.examples, counts.tokens / counts.examples), predictions)
    head = phases.pop("head")
    return (1 if frozen else 3) * sum(phases.values()) + 3 * head


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device for dense products of bfloat16, or None where it is not known, as for CPUs.

    Examples:
      >>> peak_flops(jax.devices("cpu")[0]) is None
      True
    """
    if device.platform == "tpu":
        # Imported late: it takes half a second, and only TPUs need it.
        from jax.experimental.pallas import tpu

        try:
            info = tpu.get_tpu_info()
        except ValueError:
            return None
        return float(info.bf16_ops_per_second * info.num_cores)
    return gpu_peak(device.device_kind)


def gpu_peak(kind: str) -> float | None:
    """Peak FLOP/s of a kind of GPU for dense products of bfloat16, or None.

    Examples:
      >>> gpu_peak("NVIDIA H100 80GB HBM3"), gpu_peak("NVIDIA H100 PCIe"), gpu_peak("cpu")
      (989000000000000.0, 756000000000000.0, None)
    """
    return next((peak for name, peak in _GPUS.items() if re.search(rf"\b{name}\b", kind)), None)
