"""The config of a pretraining run, and its JSON form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from bert_jax.config import lengths
from bert_jax.config.data import DataConfig
from bert_jax.config.format import from_json, to_json
from bert_jax.config.logging import LogConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.phases import Phase
from bert_jax.config.training import TrainConfig
from bert_jax.config.validation import build, check_choices
from bert_jax.errors import UserError
from bert_jax.io.addresses import refuse_credentials

_MODEL, _MASK, _OPTIM, _MESH, _TRAIN, _LOG = ModelConfig(), MaskPolicy(), OptimConfig(), MeshConfig(), TrainConfig(), LogConfig()


@dataclass(frozen=True)
class Config:
    """A pretraining run.

    Raises:
      UserError: a value is outside its range, or fields contradict each other.

    Examples:
      >>> config = Config("run", DataConfig("corpus"), mask=MaskPolicy(rate="linear(0.3, 0.15)"))
      >>> Config.from_json(config.to_json()) == config
      True
    """

    run: str
    """Run directory, for checkpoints, logs and curves; the same command resumes the run in it."""
    data: DataConfig
    """The corpus, and how examples are made from it."""
    model: ModelConfig = _MODEL
    """Shape and arithmetic of the model."""
    mask: MaskPolicy = _MASK
    """Which tokens are selected, replaced and predicted."""
    optim: OptimConfig = _OPTIM
    """Optimizer and learning-rate schedule."""
    mesh: MeshConfig = _MESH
    """Devices along each axis of the mesh."""
    parallel: Literal["mesh", "pmap"] = "mesh"
    """"mesh" compiles for an explicit mesh; "pmap" is replicated data parallelism over all devices."""
    train: TrainConfig = _TRAIN
    """Length of the run, evaluation and checkpoints."""
    phases: tuple[Phase, ...] = ()
    """Later parts of the run with other rows, such as the paper's last tenth with 512 tokens; train.steps includes them."""
    init: str | None = None
    """Model that is pretrained further, of any format that `bert-jax convert` reads; None: random initial parameters."""
    init_vocab: str | None = None
    """Directory of an extension of its vocabulary, made by `bert-jax vocab --extend`, with which the corpus was prepared.
    The rows of its new tokens start as the mean of their parts."""
    log: LogConfig = _LOG
    """What the run reports beside its losses, and where."""

    def __post_init__(self) -> None:
        model, data, optim, mesh = self.model, self.data, self.optim, self.mesh
        paths = {
            "run": self.run,
            "data.corpus": data.corpus,
            "data.vocab": data.vocab,
            "init": self.init,
            "init_vocab": self.init_vocab,
        }
        for name, path in paths.items():
            refuse_credentials(path or "", name)
        if data.sequence_length > model.max_position_embeddings:
            raise UserError(
                f"data.sequence_length {data.sequence_length} exceeds model.max_position_embeddings "
                f"{model.max_position_embeddings}; shorten the sequence or enlarge the position table."
            )
        if data.pairs and model.type_vocab_size < 2:
            raise UserError(f"Pairs need two token types, but model.type_vocab_size is {model.type_vocab_size}; use 2.")
        if model.attention not in ("auto", "reference") and model.attention_probs_dropout_prob > 0:
            raise UserError(
                f"model.attention {model.attention} has no dropout, but model.attention_probs_dropout_prob is "
                f"{model.attention_probs_dropout_prob}; set it to 0, or use the reference."
            )
        if model.causal != (self.mask.select == "next"):
            raise UserError(
                f"model.causal is {model.causal} and mask.select is {self.mask.select}; causal models, and only these, are "
                "pretrained on the next token: --model.causal --mask.select next."
            )
        if data.batch_size % optim.accumulate:
            raise UserError(f"data.batch_size {data.batch_size} is not divisible by optim.accumulate {optim.accumulate}.")
        if data.batch_size % optim.replicas:
            raise UserError(f"data.batch_size {data.batch_size} is not divisible by optim.replicas {optim.replicas}.")
        if optim.warmup_steps >= self.train.steps:
            raise UserError(
                f"optim.warmup_steps {optim.warmup_steps} leaves none of train.steps {self.train.steps} for the decay; use fewer."
            )
        if self.init_vocab is not None and self.init is None:
            raise UserError("init_vocab extends the vocabulary of the model that init names; give both.")
        mesh.check_parallel(self.parallel)
        check_choices(self, "config")
        self._check_phases()

    def _check_phases(self) -> None:
        if self.phases and lengths.has_lengths(self.train):
            raise UserError("The starts of phases are steps, and so must be the length of the run: give train.steps.")
        starts = [0, *(phase.start for phase in self.phases), self.train.steps]
        for before, phase, end in zip(starts, self.phases, starts[2:], strict=False):
            if not before < phase.start < end:
                raise UserError(f"A phase starts at step {phase.start}; it must lie between {before} and {end}.")
            if phase.peak_lr is not None and phase.warmup_steps >= end - phase.start:
                raise UserError(
                    f"A phase of {end - phase.start} steps has phases.warmup_steps {phase.warmup_steps}, which leaves none for the "
                    "decay; use fewer."
                )
        accumulated: dict[int, int] = {}
        for _, part in self.parts():
            length, count = part.data.sequence_length, part.optim.accumulate
            if accumulated.setdefault(length, count) != count:
                raise UserError(f"Two parts of the run with {length} tokens in a row differ in accumulate; use the same.")

    def parts(self) -> list[tuple[int, Config]]:
        """First step and config of each part of the run; the first part has the run's own values.

        Examples:
          >>> config = Config("run", DataConfig("corpus"), phases=(Phase(900_000, sequence_length=512),))
          >>> [(start, part.data.sequence_length) for start, part in config.parts()]
          [(0, 128), (900000, 512)]
        """
        first = dataclasses.replace(self, phases=()) if self.phases else self
        return [(0, first), *((phase.start, _with_phase(first, phase)) for phase in self.phases)]

    def to_json(self) -> str:
        """The config as JSON, with the format version under "format_version"."""
        return to_json(dataclasses.asdict(self) | {"mask": self.mask.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Inverse of ``to_json``, except for functions, of which only the identity is stored.

        Raises:
          UserError: the JSON is of another format version, a key is unknown or missing, or a value is refused.
        """
        return build(cls, from_json(text), "config")


def _with_phase(config: Config, phase: Phase) -> Config:
    """The config with what a phase changes."""

    def changed(section: Any, *names: str) -> Any:
        given = {name: getattr(phase, name) for name in names if getattr(phase, name) is not None}
        return dataclasses.replace(section, **given)

    data = changed(config.data, "sequence_length", "batch_size", "corpus")
    return dataclasses.replace(config, data=data, optim=changed(config.optim, "accumulate"))


FREE_ON_RESUME = {
    ("run",), ("data", "corpus"), ("data", "vocab"), ("data", "held_out"), ("mesh",), ("parallel",), ("model", "attention"),
    ("train", "eval_every"), ("train", "eval_batches"), ("train", "save_every"), ("train", "keep"), ("train", "log_every"),
    ("train", "distributed"), ("train", "coordinator"), ("train", "processes"), ("train", "process_id"),
    ("train", "process_timeout"), ("train", "save_at"), ("train", "save_at_words"), ("train", "save_at_tokens"),
    ("train", "save_at_epochs"), ("train", "keep_best"), ("train", "keep_every"), ("train", "keep_hours"), ("log",),
    ("train", "on_anomaly"), ("train", "spike_factor"), ("train", "spike_window"), ("train", "max_skips"),
    ("train", "max_rollbacks"), ("train", "anomaly_dumps"),
}  # fmt: skip
"""Fields that do not change what a run computes, or only from the next anomaly on, as paths; they may differ when it is resumed."""
