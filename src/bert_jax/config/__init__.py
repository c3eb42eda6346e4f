"""Frozen dataclasses that describe runs; each validates itself when it is made, whether in Python, on a command line or in JSON."""

from bert_jax.config.data import DataConfig
from bert_jax.config.finetuning import FinetuneConfig, ModelOverrides, TaskDataConfig
from bert_jax.config.logging import LogConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import SIZES, ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.phases import Phase
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig

__all__ = [
    "SIZES",
    "Config",
    "DataConfig",
    "FinetuneConfig",
    "LogConfig",
    "MaskPolicy",
    "MeshConfig",
    "ModelConfig",
    "ModelOverrides",
    "OptimConfig",
    "Phase",
    "TaskDataConfig",
    "TrainConfig",
]
