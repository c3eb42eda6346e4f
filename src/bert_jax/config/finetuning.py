"""What describes a fine-tuning run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal, get_args

from bert_jax.config.run import MeshConfig, ModelConfig, OptimConfig, States, TrainConfig
from bert_jax.config.validation import build, check_choices, parse_json, require, require_positive, require_share

Glue = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax"]
TaskName = Literal[
    "classify", "regress", "ner", "pos", "squad", "squad2", "swag",
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax",
]  # fmt: skip
GLUE = get_args(Glue)


@dataclass(frozen=True)
class Reading:
    """How the files of a task are read, and how its texts become examples."""

    label: str = "label"
    """Of one's own tables: the column of the label or score."""
    text: str = "text"
    """Of one's own tables: the column of the text."""
    text_b: str = "text_b"
    """Of one's own tables: the column of the second text, if there is one."""
    columns: tuple[str, ...] | None = None
    """Of one's own tables without a header: the names of their columns, in order."""
    length: int = 128
    """Most pieces of an example, special ones counted; longer ones are cut, the longer text first. 384 in the paper's SQuAD."""
    packing: bool = True
    """Whether examples share rows; it changes neither scores nor gradients, only the time they take."""
    context: Literal["document", "sentence"] = "document"
    """Of tags: fill each window from the sentence's document, as the paper, or take sentences by themselves."""
    scheme: Literal["strict", "loose"] = "strict"
    """Of entities: refuse tags that are neither IOB1 nor IOB2, or read them as conlleval does."""
    stride: int = 128
    """Of SQuAD: pieces from one window of a context to the next (``doc_stride``)."""
    query: int = 64
    """Of SQuAD: most pieces of a question."""
    longest: int = 30
    """Of SQuAD: most pieces of an answer."""
    n_best: int = 20
    """Of SQuAD: candidates of an answer."""

    def __post_init__(self) -> None:
        for name in ("stride", "query", "longest", "n_best"):
            require_positive(name, getattr(self, name))
        require(self.length >= 5, f"length is {self.length}; a pair needs at least 5 pieces.")
        check_choices(self, "reading")


_MESH, _READING = MeshConfig(), Reading()


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run, or several that differ in seed and learning rate only; by default the original's
    ``run_classifier.py``."""

    run: str
    """Directory of checkpoints, logs, the best model and the picture; the same command goes on where it stopped."""
    task: TaskName
    init: str
    """Model to begin with, of any format that `bert-jax convert` reads; a head of the same outputs is kept."""
    data: str
    """Directory, a prefix of file names (DIR/topic for DIR/topic.train.tsv and DIR/topic.dev.tsv), or tfds:NAME."""
    reading: Reading = _READING
    scratch: bool = False
    """Take only shape and vocabulary from it, and begin with fresh parameters."""
    batch_size: int = 32
    """Examples in a step."""
    epochs: float = 3.0
    """The last step is the last whole batch of so many epochs."""
    learning_rates: tuple[float, ...] = (5e-5,)
    """Peaks; more than one: a run for each."""
    seed: int = 0
    """The first seed: of the head's initial values, the order of examples, and dropout."""
    seeds: int = 1
    """Runs of each learning rate, with consecutive seeds."""
    together: int | None = None
    """Of several runs: as many are computed side by side on a device (vmap), the others take turns; none: one on a CPU, as many
    as memory allows elsewhere."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    optimizer: Literal["bert_adam", "adamw", "lamb", "muon", "schedule_free"] = "bert_adam"
    """bert_adam is the original's, without bias correction; adamw has it, which steadies short runs (Zhang et al. 2021)."""
    decay: Literal["from_zero", "from_peak"] = "from_zero"
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below it; 1: none."""
    clip_norm: float = 1.0
    accumulate: int = 1
    """Micro-batches whose gradients make one step."""
    reinit_layers: int = 0
    """Top layers that begin afresh, and the pooler with them (Zhang et al. 2021)."""
    frozen: bool = False
    """The feature-based approach (section 5.3): the encoder is used as it is, only what stands on it is trained."""
    states: States = "last"
    """Which states a BiLSTM reads (table 7)."""
    lstm_layers: int = 0
    """Layers of a BiLSTM under the head."""
    dropout: float | None = None
    """Dropout everywhere, attention included; the model's own where nothing is said."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; parameters stay float32."""
    layers: Literal["scan", "unroll"] = "unroll"
    attention: Literal["auto", "reference", "xla", "cudnn", "splash", "tokamax"] = "auto"
    eval_every: float = 1.0
    """Epochs between evaluations; the last step is always evaluated."""
    patience: int | None = None
    """Evaluations without a better score after which the run ends; none: never."""
    mesh: MeshConfig = _MESH
    parallel: Literal["mesh", "pmap"] = "mesh"
    keep: int = 1
    """Newest checkpoints kept, beside the best model."""
    distributed: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "seeds", "eval_every", "keep", "accumulate", "clip_norm"):
            require_positive(name, getattr(self, name))
        require(len(self.learning_rates) > 0, "No learning rate is given.")
        for rate in self.learning_rates:
            require_positive("A learning rate", rate)
        require_share("warmup", self.warmup)
        require_share("dropout", self.dropout or 0.0)
        require(self.reinit_layers >= 0, f"reinit_layers is {self.reinit_layers}; it must not be negative.")
        require(self.together is None or self.together > 0, f"together is {self.together}; it must be greater than 0.")
        require(self.patience is None or self.patience > 0, f"patience is {self.patience}; it must be greater than 0.")
        require(
            not self.frozen or (self.layer_decay == 1 and not self.reinit_layers),
            "A frozen encoder has no learning rates and no fresh layers; leave out layer_decay and reinit_layers.",
        )
        require(
            self.states == "last" or self.lstm_layers > 0,
            f"The states {self.states} are read by a BiLSTM; give --lstm-layers, 2 in the paper.",
        )
        alone = self.parallel == "mesh" and self.mesh == _MESH and not self.distributed
        require(self.members == 1 or alone, "Several runs at a time share out the devices among them; leave out mesh and parallel.")
        require(self.task != "ax", "AX is only for evaluation; its model is one of MNLI.")
        check_choices(self, "config")

    @property
    def members(self) -> int:
        """Runs that differ in seed or learning rate."""
        return self.seeds * len(self.learning_rates)

    def optim(self, steps: int) -> OptimConfig:
        """The optimizer of the first member."""
        return OptimConfig(
            name=self.optimizer,
            peak_lr=self.learning_rates[0],
            warmup_steps=int(self.warmup * steps),
            decay=self.decay,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            layer_decay=self.layer_decay,
            accumulate=self.accumulate,
        )

    def train(self, steps: int, examples: int) -> TrainConfig:
        """Length of the run and what happens along it, in steps."""
        every = max(1, min(steps, int(self.eval_every * examples / self.batch_size)))
        return TrainConfig(
            steps=steps, seed=self.seed, eval_every=every, save_every=every, keep=self.keep, distributed=self.distributed
        )

    def model(self, pretrained: ModelConfig) -> ModelConfig:
        """The pretrained model as this run computes it."""
        changes = {name: getattr(self, name) for name in ("dtype", "layers", "attention")}
        if self.lstm_layers:
            changes |= {"states": self.states, "lstm_layers": self.lstm_layers}
        if self.dropout is not None:
            rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
            changes |= dict.fromkeys(rates, self.dropout) | {"classifier_dropout": None}
        return dataclasses.replace(pretrained, **changes)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> FinetuneConfig:
        """Inverse of :meth:`to_json`.

        Raises:
          UserError: a key that no field has, a missing one, or a refused value.
        """
        config: FinetuneConfig = build(cls, parse_json(text, "The stored config"), "config")
        return config


# What may differ when a run is resumed.
FREE_ON_RESUME = {
    ("run",), ("init",), ("data",), ("mesh",), ("parallel",), ("attention",), ("keep",), ("distributed",),
    ("eval_every",), ("patience",),
}  # fmt: skip
