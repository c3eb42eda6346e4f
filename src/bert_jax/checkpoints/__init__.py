"""Checkpoints: device state, data position, config and tokenizer, written by Orbax in the background.

Orbax commits a step atomically, but does not detect flipped bits in array data. Each checkpoint therefore contains a checksum of
every array, computed on the devices that hold it, which is verified on reading, and a manifest of its files. A step that cannot be
read is renamed, and the step before it is used.
"""

from __future__ import annotations

from bert_jax.checkpoints.description import HEADS_OF_VERSION_1, Meta
from bert_jax.checkpoints.store import BEST, DIRECTORY, Checkpoints, abstract

__all__ = ["BEST", "DIRECTORY", "HEADS_OF_VERSION_1", "Checkpoints", "Meta", "abstract"]
