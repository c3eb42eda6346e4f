"""Published speed and memory of accelerators, and sizes of memory as text."""

from __future__ import annotations

import re
from typing import NamedTuple

from bert_jax.errors import UserError
from bert_jax.training.throughput import gpu_peak


class Hardware(NamedTuple):
    """What a data sheet states of one device, as JAX counts devices."""

    flops: float
    """Peak bfloat16 FLOP/s of dense products."""
    memory: int
    """Bytes of its memory; a part of them, 5 to 10 %, is not available to programs."""
    source: str
    """Where both figures are published."""


def _gpu(kind: str, memory: int, model: str) -> Hardware:
    return Hardware(gpu_peak(kind) or 0.0, memory, f"NVIDIA, data sheet of the {model}")


_TPU = "Google Cloud, TPU system architecture"
HARDWARE = {
    "v4": Hardware(275e12, 32 * 2**30, f"{_TPU}, TPU v4"),
    "v5e": Hardware(197e12, 16 * 2**30, f"{_TPU}, TPU v5e"),
    "v5p": Hardware(459e12, 95 * 2**30, f"{_TPU}, TPU v5p"),
    "v6e": Hardware(918e12, 32 * 2**30, f"{_TPU}, TPU v6e"),
    "a100-40": _gpu("A100", 40 * 2**30, "A100 40GB"),
    "a100-80": _gpu("A100", 80 * 2**30, "A100 80GB"),
    "h100": _gpu("H100", 80 * 2**30, "H100 SXM, without sparsity"),
    "h200": _gpu("H200", 141 * 10**9, "H200 SXM, without sparsity"),
}
"""Devices by name. On a TPU v4 or later one chip is one device."""

_UNITS = {"": 1, "B": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)}


def parse_memory(text: str) -> int:
    """Bytes of a size such as "16GB" (10**9 bytes each) or "16GiB" (2**30 bytes each).

    Raises:
      UserError: it is none.

    Examples:
      >>> parse_memory("16GB"), parse_memory("1.5 GiB")
      (16000000000, 1610612736)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {name.upper(): size for name, size in _UNITS.items()}
    if match is None or match[2].upper() not in units or (size := int(float(match[1]) * units[match[2].upper()])) <= 0:
        raise UserError(f"The memory {text!r} is not a size; write it as 16GB or 15.5GiB.")
    return size


def find(name: str) -> Hardware:
    """The entry of ``HARDWARE`` with this name.

    Raises:
      UserError: there is none.
    """
    if name.lower() not in HARDWARE:
        raise UserError(f"There is no hardware {name!r}; choose one of {', '.join(HARDWARE)}, or give --flops and --memory.")
    return HARDWARE[name.lower()]
