"""Shape and arithmetic of the encoder, and the sizes of the papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bert_jax.config.validation import check_choices, require_positive, require_share
from bert_jax.errors import UserError

States = Literal["last", "second_to_last", "embeddings", "sum_last_four", "concat_last_four", "sum_all"]
"""Hidden states that the heads of tasks can read (Devlin et al. 2018, table 7)."""

Activation = Literal["gelu", "gelu_tanh", "relu", "tanh"]
"""Names of activation functions."""

# Devlin et al. 2018, section 3; Turc et al. 2019, table 1.
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
"""Published sizes: layers, hidden size and attention heads."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of the encoder; the defaults are BERT-Base (Devlin et al. 2018, section 3).

    Fields before ``causal`` have the names of the original's ``bert_config.json`` and its successors.

    Raises:
      UserError: a value is outside its range, or dimensions do not divide.

    Examples:
      >>> ModelConfig(num_attention_heads=16).head_size
      48
    """

    vocab_size: int = 30522
    """V, number of tokens in the vocabulary."""
    hidden_size: int = 768
    """D, width of the hidden states."""
    num_hidden_layers: int = 12
    """L, number of transformer layers."""
    num_attention_heads: int = 12
    """H, attention heads per layer; it must divide hidden_size."""
    intermediate_size: int = 3072
    """F, width of the feed-forward layers."""
    hidden_act: Activation = "gelu"
    """Activation function:
    "gelu": the exact erf form, with which the released checkpoints were trained;
    "gelu_tanh": its approximation, which the original's code computes since February 2019."""
    hidden_dropout_prob: float = 0.1
    """Dropout rate of the embeddings and of each sublayer's output."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout rate of the attention probabilities."""
    max_position_embeddings: int = 512
    """Number of positions, and so the maximum length of an example in tokens."""
    type_vocab_size: int = 2
    """Number of token types (segments)."""
    initializer_range: float = 0.02
    """Standard deviation of the normal distribution of initial weights, before it is truncated."""
    layer_norm_eps: float = 1e-12
    """Constant added to the variance in layer norms."""
    position_embedding_type: Literal["learned", "sinusoidal"] = "learned"
    """Learned position embeddings, or fixed sinusoids."""
    classifier_dropout: float | None = None
    """Dropout rate of the states that a task's head reads; None: hidden_dropout_prob."""
    tie_word_embeddings: bool = True
    """The output layer of the MLM head has the word embeddings as its weights, as in the paper, rather than a table of its own."""
    initializer: Literal["truncated_normal", "normal"] = "truncated_normal"
    """Distribution of initial weights: truncated at two standard deviations, as in the original, or not, as in transformers."""
    causal: bool = False
    """Tokens do not attend to later tokens (the "LTR" model of the paper's section 5.1); pretrain with mask.select next."""
    states: States = "last"
    """Hidden states that the heads of tasks read through a BiLSTM (the paper's table 7); sums have learned weights."""
    lstm_layers: int = 0
    """Layers of a BiLSTM between those states and the heads; both directions together are as wide as the encoder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, layer norm, softmax and losses stay float32."""
    layers: Literal["scan", "unroll"] = "unroll"
    """How the layer stack is compiled, with the same parameter tree: "scan" compiles one layer, "unroll" runs faster on a CPU."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but the matrix products ("dots"), or whole layers ("full").
    On CPUs XLA undoes this in unrolled layers; use layers "scan" there."""
    attention: Literal["auto", "reference", "xla", "cudnn", "splash", "tokamax"] = "auto"
    """Attention implementation. Only "reference" has dropout; the others train at a rate of 0.
    "auto": cuDNN on an NVIDIA GPU, splash attention on a TPU, for bfloat16 without attention dropout; otherwise the reference."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            require_positive(f"model.{name}", getattr(self, name))
        for name in ("max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps"):
            require_positive(f"model.{name}", getattr(self, name))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_attention_heads {self.num_attention_heads}."
            )
        require_share("model.hidden_dropout_prob", self.hidden_dropout_prob)
        require_share("model.attention_probs_dropout_prob", self.attention_probs_dropout_prob)
        require_share("model.classifier_dropout", self.classifier_dropout or 0.0)
        check_choices(self, "model")
        self._check_readout()

    def _check_readout(self) -> None:
        if self.lstm_layers < 0:
            raise UserError(f"model.lstm_layers is {self.lstm_layers}; it must not be negative.")
        if self.states != "last" and self.lstm_layers == 0:
            raise UserError(f"model.states is {self.states}, which needs a BiLSTM; set model.lstm_layers, 2 in the paper.")
        if self.states.endswith("four") and self.num_hidden_layers < 4:
            raise UserError(
                f"model.states is {self.states}, but model.num_hidden_layers is {self.num_hidden_layers}; use 4 or more."
            )
        if self.lstm_layers and self.hidden_size % 2:
            raise UserError(f"model.hidden_size {self.hidden_size} is odd; the two directions of a BiLSTM need an even size.")

    @property
    def head_size(self) -> int:
        """K, width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def check_length(self, length: int) -> None:
        """Check that rows of ``length`` tokens fit.

        Raises:
          UserError: the model has fewer positions.
        """
        limit = self.max_position_embeddings
        if length > limit:
            raise UserError(f"The sequence length of {length} tokens exceeds the model's {limit} positions; use {limit} or fewer.")

    @classmethod
    def size(cls, name: str, **changes: Any) -> ModelConfig:
        """A published size, with some fields changed.

        Args:
          name: a key of ``SIZES``, "tiny" to "large".
          changes: values of further fields.

        Raises:
          UserError: there is no such size, or a value is refused.

        Examples:
          >>> ModelConfig.size("mini", vocab_size=100).num_hidden_layers
          4
        """
        if name not in SIZES:
            raise UserError(f"There is no model size {name!r}; choose one of {', '.join(SIZES)}.")
        layers, hidden, heads = SIZES[name]
        shape = dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden)
        return cls(**(shape | changes))
