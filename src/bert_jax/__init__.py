"""BERT as pure JAX functions: paper-exact, pod-grade, schedule-first."""

from bert_jax.config import (
    Config,
    DataConfig,
    FinetuneConfig,
    LogConfig,
    MaskPolicy,
    MeshConfig,
    ModelConfig,
    ModelOverrides,
    OptimConfig,
    Phase,
    TaskDataConfig,
    TrainConfig,
)
from bert_jax.errors import BertWarning, RunError, UserError
from bert_jax.evaluation.sweeps import Sweep, sweep
from bert_jax.inference.bert import Bert
from bert_jax.inference.files import load, save
from bert_jax.inference.predictor import Predictor
from bert_jax.masking import ResolvedMaskPolicy, mask_tokens
from bert_jax.masking import resolve as resolve_policy
from bert_jax.models.encoder import encode, hidden_states
from bert_jax.models.heads import head_logits, mlm_logits, nsp_logits
from bert_jax.training.finetuning import finetune
from bert_jax.training.pretraining import pretrain

__version__ = "0.1.0"
__all__ = [
    "Bert",
    "BertWarning",
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
    "Predictor",
    "ResolvedMaskPolicy",
    "RunError",
    "Sweep",
    "TaskDataConfig",
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
    "resolve_policy",
    "save",
    "sweep",
]
