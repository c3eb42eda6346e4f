"""Configuration of a fine-tuning run: the task and its data, changes to the model, the optimizer, and the ensemble of runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from bert_jax.config.format import from_json, to_json
from bert_jax.config.logging import LogConfig
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import ModelConfig, States
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.training import TrainConfig
from bert_jax.config.validation import build, check_choices, require_positive, require_share
from bert_jax.errors import UserError
from bert_jax.io.addresses import refuse_credentials

Glue = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax"]
TaskName = Literal[
    "classify", "regress", "multilabel", "ner", "pos", "squad", "squad2", "swag",
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax",
]  # fmt: skip
Scheme = Literal["strict", "iob1", "iob2", "iobes", "bilou", "loose"]
GLUE = get_args(Glue)
Quoting = Literal["minimal", "none"]
"""Cells of a table in double quotes: enclosed as in CSV, or with quotes as ordinary characters."""


@dataclass(frozen=True)
class TaskDataConfig:
    """How the files of a task are read and how its texts become examples.

    Examples:
      >>> TaskDataConfig(sequence_length=384, doc_stride=128).packing
      32
    """

    label: str = "label"
    """Your own tables: the column of the label, the labels or the score."""
    text: str = "text"
    """Your own tables: the column of the text."""
    text_b: str = "text_b"
    """Your own tables: the column of the second text, if there is one."""
    columns: tuple[str, ...] | None = None
    """Your own tables without a header: the names of their columns, in order."""
    quoting: Quoting | None = None
    """Your own tables: "minimal" reads cells in double quotes as CSV does, "none" takes quotes as ordinary characters.
    By default minimal for .csv and none for .tsv; a .tsv file with other rows under the other reading is refused."""
    sequence_length: int = 128
    """Maximum tokens of a text or pair, special tokens included; the longer text is truncated first. 384 in the paper's SQuAD."""
    packing: int = 32
    """Maximum texts in a row, isolated from each other; scores and gradients do not depend on it. 1: one example per row."""
    context: Literal["document", "sentence"] = "document"
    """Token classification: fill each window from the sentence's document, as the paper does, or use the sentence alone."""
    scheme: Scheme = "strict"
    """Named entities: the scheme of the tags; strict finds it and refuses tags that contradict it, loose takes any.
    iobes and bilou are scored as seqeval's strict mode does, the others as conlleval does."""
    doc_stride: int = 128
    """SQuAD: tokens from the start of one window of a context to the start of the next."""
    max_query_length: int = 64
    """SQuAD: maximum tokens of a question."""
    max_answer_length: int = 30
    """SQuAD: maximum tokens of an answer."""
    n_best: int = 20
    """SQuAD: number of candidate answers."""
    skip_misplaced: bool = False
    """SQuAD: leave out training questions with an answer that is not at its answer_start."""
    thresholds: tuple[float, ...] = ()
    """Multi-label: probability from which a label is predicted, for all labels or for each in sorted order; by default 0.5."""

    def __post_init__(self) -> None:
        if isinstance(self.packing, bool):
            raise UserError(f"packing is {self.packing}; give the maximum number of texts in a row, 1 for one example per row.")
        for name in ("packing", "doc_stride", "max_query_length", "max_answer_length", "n_best"):
            require_positive(name, getattr(self, name))
        if self.sequence_length < 5:
            raise UserError(f"sequence_length is {self.sequence_length}; a pair needs at least 5 tokens.")
        for threshold in self.thresholds:
            if not 0 <= threshold <= 1:
                raise UserError(f"A threshold is {threshold}; thresholds are probabilities and must lie in [0, 1].")
        check_choices(self, "task_data")


@dataclass(frozen=True)
class ModelOverrides:
    """Changes to the pretrained model for fine-tuning.

    Raises:
      UserError: a value is outside its range, or ``states`` is set without a BiLSTM.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters stay float32."""
    layers: Literal["scan", "unroll"] = "unroll"
    """How the layer stack is compiled."""
    attention: Literal["auto", "reference", "xla", "cudnn", "splash", "tokamax"] = "auto"
    """Attention implementation."""
    dropout: float | None = None
    """Dropout rate everywhere, attention probabilities included; by default the rates of the pretrained model."""
    states: States = "last"
    """Hidden states that a BiLSTM reads (table 7)."""
    lstm_layers: int = 0
    """Layers of a BiLSTM between the encoder and the head."""

    def __post_init__(self) -> None:
        require_share("model.dropout", self.dropout or 0.0)
        if self.states != "last" and self.lstm_layers <= 0:
            raise UserError(f"model.states is {self.states}, which needs a BiLSTM; set --model.lstm-layers, 2 in the paper.")
        check_choices(self, "model")


_MESH, _TASK_DATA, _MODEL, _OPTIM, _LOG = MeshConfig(), TaskDataConfig(), ModelOverrides(), OptimConfig(), LogConfig()


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run, or an ensemble of runs that differ only in seed and learning rate.

    The defaults are those of the original's ``run_classifier.py``.

    Examples:
      >>> config = FinetuneConfig("runs/rte", "rte", "runs/mnli", "GLUE", seeds=4, learning_rates=(2e-5, 3e-5))
      >>> config.num_runs, config.optim_config(100).warmup_steps
      (8, 10)
    """

    run: str
    """Run directory: checkpoints, logs, the best model and the figure. The same command resumes the run."""
    task: TaskName
    init: str
    """Pretrained model, of any format that `bert-jax convert` reads; a head with the same outputs is kept."""
    data: str
    """Directory, a prefix of file names (DIR/topic for DIR/topic.train.tsv and DIR/topic.dev.tsv), or tfds:NAME."""
    task_data: TaskDataConfig = _TASK_DATA
    model: ModelOverrides = _MODEL
    optim: OptimConfig = _OPTIM
    """Optimizer. Set its peak learning rate with learning_rates and its warm-up with warmup_ratio."""
    vocab: str | None = None
    """Directory of an extension of the model's vocabulary, made by `bert-jax vocab --extend`.
    The rows of its new tokens start as the mean of their parts."""
    added_tokens: tuple[str, ...] = ()
    """Tokens to add to the vocabulary, which are found before a text is split; each starts as the mean of its parts."""
    from_scratch: bool = False
    """Use only the shape and the vocabulary of the pretrained model; initialize all parameters."""
    class_weights: str | None = None
    """Weights of the classes in the loss: balanced, by their frequency, or a JSON file with the weight of each.
    For a multi-label task they are the weights of the examples that have the label."""
    batch_size: int = 32
    """Examples in a step."""
    epochs: float = 3.0
    """Length of the run; the last step is the last whole batch."""
    learning_rates: tuple[float, ...] = (5e-5,)
    """Peak learning rates; several train one run each."""
    seed: int = 0
    """First seed; it determines the initial values of the head, the order of the examples, and dropout."""
    seeds: int = 1
    """Runs for each learning rate, with consecutive seeds."""
    runs_per_device: int | None = None
    """Runs that a device trains side by side (vmap), the others in turn; by default one on a CPU, else as many as memory holds."""
    warmup_ratio: float = 0.1
    """Fraction of the steps in which the learning rate rises."""
    reinit_layers: int = 0
    """Top layers that are initialized again, together with the pooler (Zhang et al. 2021)."""
    freeze_encoder: bool = False
    """Train only the layers on top of the encoder, the paper's feature-based approach (section 5.3)."""
    eval_every: float = 1.0
    """Epochs between evaluations; the last step is always evaluated.
    The interval grows where the evaluation before the last one would lie within a third of it from the end."""
    patience: int | None = None
    """Early stopping: evaluations without a better score after which the run ends; none: never."""
    mesh: MeshConfig = _MESH
    parallel: Literal["mesh", "pmap"] = "mesh"
    """"mesh" compiles for an explicit mesh; "pmap" is replicated data parallelism over all devices."""
    keep: int = 1
    """Newest checkpoints that are kept beside the best model."""
    distributed: bool = False
    """Join the processes of a run on several hosts, found in the environment of a TPU pod, Slurm, Open MPI or Kubernetes."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the environment does not name it; the port after it is used, too."""
    processes: int | None = None
    """Number of processes, where the environment does not name it."""
    process_id: int | None = None
    """Index of this process, counted from 0, where the environment does not name it."""
    process_timeout: float | int = 300
    """Seconds for which processes wait for one that is missing or lags behind before all end with a sentence."""
    log: LogConfig = _LOG
    """What the run reports beside its loss, and where."""

    def __post_init__(self) -> None:
        for name in ("run", "init", "data", "vocab"):
            refuse_credentials(getattr(self, name) or "", name)
        for name in ("batch_size", "epochs", "seeds", "eval_every", "keep"):
            require_positive(name, getattr(self, name))
        if not self.learning_rates:
            raise UserError("learning_rates is empty; give at least one with --learning-rates.")
        for learning_rate in self.learning_rates:
            require_positive("A learning rate", learning_rate)
        require_share("warmup_ratio", self.warmup_ratio)
        if self.optim.peak_lr != OptimConfig.peak_lr:
            raise UserError(f"optim.peak_lr is {self.optim.peak_lr}; set the peaks of fine-tuning runs with --learning-rates.")
        if self.optim.warmup_steps != OptimConfig.warmup_steps:
            raise UserError(
                f"optim.warmup_steps is {self.optim.warmup_steps}; set the warm-up of fine-tuning runs with --warmup-ratio."
            )
        if self.optim.replicas > 1:
            raise UserError("optim.replicas is for pretraining; fine-tuning divides its loss by the weight of the whole batch.")
        if self.reinit_layers < 0:
            raise UserError(f"reinit_layers is {self.reinit_layers}; it must not be negative.")
        for name in ("runs_per_device", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}; it must be greater than 0.")
        if self.freeze_encoder and (self.optim.layer_decay != 1 or self.reinit_layers):
            raise UserError("freeze_encoder trains no layer of the encoder; leave out --optim.layer-decay and --reinit-layers.")
        if self.num_runs > 1 and (self.parallel != "mesh" or self.mesh != _MESH or self.distributed):
            raise UserError(
                "An ensemble of runs is distributed over the devices of one host; leave out --mesh, --parallel and --distributed."
            )
        self.mesh.check_parallel(self.parallel)
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative.")
        if self.task == "ax":
            raise UserError("AX has no training data; fine-tune on mnli, and evaluate that model on ax.")
        check_choices(self, "config")

    @property
    def num_runs(self) -> int:
        """Number of runs in the ensemble, one for each learning rate and seed."""
        return self.seeds * len(self.learning_rates)

    def optim_config(self, steps: int) -> OptimConfig:
        """Optimizer of the first run, for a run of ``steps`` steps."""
        return dataclasses.replace(self.optim, peak_lr=self.learning_rates[0], warmup_steps=int(self.warmup_ratio * steps))

    def train_config(self, steps: int, examples: int) -> TrainConfig:
        """Length of the run and its evaluations, in steps, for a training set of ``examples`` examples."""
        shortest = max(1, min(steps, int(self.eval_every * examples / self.batch_size)))
        # Epochs are rarely whole numbers of steps; two evaluations a few steps apart would count as two for `patience`.
        eval_every = next(every for every in range(shortest, steps + 1) if not 0 < 3 * (steps % every) <= every)
        return TrainConfig(
            steps=steps, seed=self.seed, eval_every=eval_every, save_every=eval_every, keep=self.keep, distributed=self.distributed
        )

    def model_config(self, pretrained: ModelConfig) -> ModelConfig:
        """The pretrained model's config with the overrides of this run."""
        overrides = self.model
        changes = {name: getattr(overrides, name) for name in ("dtype", "layers", "attention")}
        if overrides.lstm_layers:
            changes |= {"states": overrides.states, "lstm_layers": overrides.lstm_layers}
        if overrides.dropout is not None:
            rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
            changes |= dict.fromkeys(rates, overrides.dropout) | {"classifier_dropout": None}
        return dataclasses.replace(pretrained, **changes)

    def to_json(self) -> str:
        """The config as JSON, with the format version under "format_version"."""
        return to_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FinetuneConfig:
        """Inverse of ``to_json``.

        Raises:
          UserError: the JSON is of another format version, a key is unknown or missing, or a value is refused.
        """
        config: FinetuneConfig = build(cls, from_json(text), "config")
        return config


FREE_ON_RESUME = {
    ("run",), ("init",), ("data",), ("mesh",), ("parallel",), ("model", "attention"), ("keep",), ("distributed",),
    ("eval_every",), ("patience",), ("coordinator",), ("processes",), ("process_id",), ("process_timeout",), ("log",),
}  # fmt: skip
"""Fields that may change when a run is resumed."""
