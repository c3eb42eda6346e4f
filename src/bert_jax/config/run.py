"""Frozen dataclasses that describe a run, the sizes of the papers, validation in sentences, JSON.

Every dataclass checks itself when it is made, so a wrong value is refused where it is written,
whether that is a Python file, a command line or a stored ``config.json``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from bert_jax.config.validation import build, check_choices, require, require_positive, require_share
from bert_jax.errors import UserError
from bert_jax.masking.policy import MaskPolicy

States = Literal["last", "second_to_last", "embeddings", "sum_last_four", "concat_last_four", "sum_all"]
Activation = Literal["gelu", "gelu_tanh", "relu", "tanh"]

_MASK = MaskPolicy()

# (layers, hidden, heads): Devlin et al. 2018, section 3; Turc et al. 2019, table 1.
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of the encoder; defaults are BERT-Base (Devlin et al. 2018, section 3).

    All but the fields from ``causal`` on carry the names of the original's ``bert_config.json`` and its followers.
    """

    vocab_size: int = 30522
    """V, number of word pieces."""
    hidden_size: int = 768
    """D."""
    num_hidden_layers: int = 12
    """L."""
    num_attention_heads: int = 12
    """H; it must divide hidden_size."""
    intermediate_size: int = 3072
    """F."""
    hidden_act: Activation = "gelu"
    """"gelu" is the exact erf form, with which the released checkpoints were trained; the original's code computes
    "gelu_tanh" since February 2019."""
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: Literal["learned", "sinusoidal"] = "learned"
    classifier_dropout: float | None = None
    """What is dropped of the states that a task's head stands on; as hidden_dropout_prob where nothing is said."""
    causal: bool = False
    """Each token sees none after it (the paper's "LTR" model, section 5.1); pretrain it with mask.select next."""
    states: States = "last"
    """Which states the heads of tasks stand on (the paper's table 7); sums have learned weights."""
    lstm_layers: int = 0
    """Layers of a BiLSTM between those states and the heads, as wide as the encoder, both directions together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, layer norm, softmax and losses stay float32."""
    layers: Literal["scan", "unroll"] = "unroll"
    """How the layer stack is compiled, from the same parameter tree: scan compiles one layer, unroll runs faster on a CPU."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but the matrix products, or whole layers."""
    attention: Literal["auto", "reference", "xla", "cudnn", "splash", "tokamax"] = "auto"
    """Who computes attention: "auto" takes cuDNN's on an NVIDIA GPU and splash attention on a TPU where they can, else the
    reference. Only the reference drops attention probabilities out; the others need a rate of 0 to train."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            require_positive(f"model.{name}", getattr(self, name))
        for name in ("max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps"):
            require_positive(f"model.{name}", getattr(self, name))
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"model.hidden_size {self.hidden_size} is not divisible by model.num_attention_heads {self.num_attention_heads}.",
        )
        require_share("model.hidden_dropout_prob", self.hidden_dropout_prob)
        require_share("model.attention_probs_dropout_prob", self.attention_probs_dropout_prob)
        require_share("model.classifier_dropout", self.classifier_dropout or 0.0)
        check_choices(self, "model")
        require(self.lstm_layers >= 0, f"model.lstm_layers is {self.lstm_layers}; it must not be negative.")
        require(
            self.states == "last" or self.lstm_layers > 0,
            f"model.states {self.states} are read by a BiLSTM; give model.lstm_layers, 2 in the paper.",
        )
        four = not self.states.endswith("four") or self.num_hidden_layers >= 4
        require(four, f"model.states is {self.states}, and there are {self.num_hidden_layers} layers.")
        require(
            not self.lstm_layers or self.hidden_size % 2 == 0,
            f"model.hidden_size {self.hidden_size} is odd; a BiLSTM has two directions.",
        )

    @property
    def head_size(self) -> int:
        """K, width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def size(cls, name: str, **changes: Any) -> ModelConfig:
        """A published size, "tiny" to "large", with the given fields changed."""
        require(name in SIZES, f"There is no size {name!r}; choose one of {', '.join(SIZES)}.")
        layers, hidden, heads = SIZES[name]
        shape = dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden)
        return cls(**(shape | changes))


@dataclass(frozen=True)
class DataConfig:
    """Which corpus is read and how examples are made from its documents."""

    corpus: str
    """Directory that `bert-jax prepare` wrote."""
    sequence_length: int = 128
    """S, tokens in a row, [CLS] and [SEP] included."""
    batch_size: int = 256
    """B, rows in a global batch, over all devices and hosts."""
    pairs: bool = True
    """Sentence pairs with next-sentence labels; without, rows are contiguous sentences of one document and there is no NSP loss."""
    random_next: float = 0.5
    """Probability that the second segment comes from another document."""
    short_sequences: float = 0.1
    """Probability that a document is cut to a random shorter target length."""
    packing: int = 6
    """Most examples in a row, none of which sees another; 1: one example, and padding."""
    dupe_factor: int | None = None
    """Epochs after which examples and masks repeat (the original's static masking); none: never."""

    def __post_init__(self) -> None:
        require(
            self.sequence_length >= 5,
            f"data.sequence_length is {self.sequence_length}; a pair needs at least 5 tokens.",
        )
        require_positive("data.batch_size", self.batch_size)
        require_positive("data.packing", self.packing)
        for name in ("random_next", "short_sequences"):
            require(0.0 <= getattr(self, name) <= 1.0, f"data.{name} is {getattr(self, name)}; it must lie in [0, 1].")
        if self.dupe_factor is not None:
            require_positive("data.dupe_factor", self.dupe_factor)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, schedule, clipping and accumulation; defaults are the paper's (appendix A.2)."""

    name: Literal["bert_adam", "adamw", "lamb", "muon", "schedule_free"] = "bert_adam"
    """"bert_adam" has no bias correction, as the original; "adamw" has; "lamb" adds per-layer trust ratios; "muon"
    orthogonalises the updates of the layers' matrices, with a momentum of 0.95, and leaves the rest to "adamw";
    "schedule_free" is AdamW on an average of its own steps, whose rate does not decay."""
    peak_lr: float = 1e-4
    warmup_steps: int = 10_000
    decay: Literal["from_zero", "from_peak"] = "from_zero"
    """Linear decay to 0 at the last step: the original's line starts at step 0, so that the rate drops at the end of
    warm-up; "from_peak" starts there at the peak."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    """Decoupled; layer norms and biases are not decayed, everything else is."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below it (layer-wise decay); 1: none."""
    accumulate: int = 1
    """Micro-batches whose gradients make one step; the result is that of the whole batch at once."""

    def __post_init__(self) -> None:
        for name in ("peak_lr", "eps", "clip_norm", "accumulate"):
            require_positive(f"optim.{name}", getattr(self, name))
        require(self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}; it must not be negative.")
        require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; it must not be negative.")
        require(0 < self.layer_decay <= 1, f"optim.layer_decay is {self.layer_decay}; it must lie in (0, 1].")
        require_share("optim.b1", self.b1)
        require_share("optim.b2", self.b2)
        check_choices(self, "optim")
        require(self.name != "schedule_free" or self.b1 > 0, "optim.b1 is 0; schedule_free needs some of the average.")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; their product is the number of devices."""

    data: int = -1
    """Data parallel; -1 takes the devices that the other axes leave."""
    fsdp: int = 1
    """Data parallel with parameters and optimizer state divided."""
    tensor: int = 1
    """Attention heads, feed-forward and vocabulary divided."""

    def __post_init__(self) -> None:
        require(self.data == -1 or self.data > 0, f"mesh.data is {self.data}; give a number of devices, or -1 for the rest.")
        require_positive("mesh.fsdp", self.fsdp)
        require_positive("mesh.tensor", self.tensor)


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run and what happens along it."""

    steps: int = 1_000_000
    seed: int = 0
    eval_every: int = 10_000
    """Steps between held-out evaluations; the last step is always evaluated."""
    eval_batches: int | None = None
    """Held-out batches per evaluation; none: all of them."""
    save_every: int = 1_000
    """Steps between checkpoints; evaluated steps and the last one are always saved."""
    keep: int = 3
    """Newest checkpoints kept."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl and TensorBoard."""
    distributed: bool = False
    """Join a multi-host run with jax.distributed.initialize, which finds TPU pods and Slurm by itself."""

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "save_every", "keep", "log_every"):
            require_positive(f"train.{name}", getattr(self, name))
        if self.eval_batches is not None:
            require_positive("train.eval_batches", self.eval_batches)
        require(self.seed >= 0, f"train.seed is {self.seed}; it must not be negative.")


@dataclass(frozen=True)
class Config:
    """A pretraining run."""

    run: str
    """Directory of checkpoints, logs and the picture; the same command goes on where it stopped."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    mask: MaskPolicy = _MASK
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    parallel: Literal["mesh", "pmap"] = "mesh"
    """"mesh" compiles for an explicit mesh; "pmap" is replicated data parallelism over the local devices."""
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        model, data, optim = self.model, self.data, self.optim
        require(
            data.sequence_length <= model.max_position_embeddings,
            f"data.sequence_length {data.sequence_length} goes past model.max_position_embeddings {model.max_position_embeddings}; "
            "shorten the sequence or enlarge the position table.",
        )
        require(
            not data.pairs or model.type_vocab_size >= 2,
            f"Pairs need two token types; model.type_vocab_size is {model.type_vocab_size}.",
        )
        require(
            model.attention in ("auto", "reference") or model.attention_probs_dropout_prob == 0,
            f"model.attention {model.attention} has no dropout, but model.attention_probs_dropout_prob is "
            f"{model.attention_probs_dropout_prob}; set it to 0, or use the reference.",
        )
        require(
            model.causal == (self.mask.select == "next"),
            "A causal model is pretrained on the next token, and only such a one: --model.causal True --mask.select next.",
        )
        require(
            data.batch_size % optim.accumulate == 0,
            f"data.batch_size {data.batch_size} is not divisible by optim.accumulate {optim.accumulate}.",
        )
        require(
            optim.warmup_steps < self.train.steps,
            f"optim.warmup_steps {optim.warmup_steps} leaves nothing of train.steps {self.train.steps} to decay over.",
        )
        require(
            self.parallel == "mesh" or self.mesh == MeshConfig(),
            f"parallel is pmap, which replicates parameters over all devices, but the mesh is data {self.mesh.data} x "
            f"fsdp {self.mesh.fsdp} x tensor {self.mesh.tensor}; use --parallel mesh.",
        )
        check_choices(self, "config")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self) | {"mask": self.mask.stored()}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Inverse of :meth:`to_json`.

        Raises:
          UserError: a key that no field has, a missing one, or a refused value.
        """
        try:
            stored = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"The stored config is not JSON: {error}.") from None
        return build(cls, stored, "config")


FREE_ON_RESUME = {
    ("run",), ("data", "corpus"), ("mesh",), ("parallel",), ("model", "attention"),
    ("train", "eval_every"), ("train", "eval_batches"), ("train", "save_every"), ("train", "keep"), ("train", "log_every"),
    ("train", "distributed"),
}  # fmt: skip
"""Sections and fields that do not change what a run computes: they may differ when it is resumed."""
