"""BERT as pure JAX functions: paper-exact, pod-grade, schedule-first."""

from bert_jax.config.finetuning import FinetuneConfig, Reading
from bert_jax.config.run import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from bert_jax.errors import Failure, UserError
from bert_jax.evaluation.sweeps import Sweep, sweep
from bert_jax.inference.bert import Bert, load, save
from bert_jax.inference.predictor import Asker
from bert_jax.masking.policy import MaskPolicy
from bert_jax.masking.replacement import mask_tokens
from bert_jax.models.encoder import encode, hidden_states
from bert_jax.models.heads import head_logits, mlm_logits, nsp_logits
from bert_jax.training.finetuning import finetune
from bert_jax.training.pretraining import pretrain

__version__ = "0.1.0"
__all__ = [
    "Asker",
    "Bert",
    "Config",
    "DataConfig",
    "Failure",
    "FinetuneConfig",
    "MaskPolicy",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "Reading",
    "Sweep",
    "TrainConfig",
    "UserError",
    "encode",
    "finetune",
    "head_logits",
    "hidden_states",
    "load",
    "mask_tokens",
    "mlm_logits",
    "nsp_logits",
    "pretrain",
    "save",
    "sweep",
]
