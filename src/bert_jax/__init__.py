"""BERT as pure JAX functions: paper-exact, pod-grade, schedule-first."""

from bert_jax.ask import Asker
from bert_jax.bert import Bert, load, save
from bert_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from bert_jax.errors import Failure, UserError
from bert_jax.finetuning import finetune
from bert_jax.heads import head_logits, mlm_logits, nsp_logits
from bert_jax.masking import mask_tokens
from bert_jax.model import encode, hidden_states
from bert_jax.policy import MaskPolicy
from bert_jax.sweeps import Sweep, sweep
from bert_jax.tasks.config import FinetuneConfig, Reading
from bert_jax.train import pretrain

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
