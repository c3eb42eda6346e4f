"""How a text becomes one vector: pooling of token states, further layers, prompts and the length of texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from bert_jax.errors import UserError

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How the states of a text become one vector, with the names of sentence-transformers."""
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "linear.Identity": lambda x: x,
    "activation.Tanh": np.tanh,
    "activation.ReLU": jax.nn.relu,
    "activation.GELU": functools.partial(jax.nn.gelu, approximate=False),
    "activation.Sigmoid": jax.nn.sigmoid,
    "activation.SiLU": jax.nn.silu,
    "activation.Mish": jax.nn.mish,
    "activation.ELU": jax.nn.elu,
    "activation.SELU": jax.nn.selu,
    "activation.LeakyReLU": jax.nn.leaky_relu,
    "activation.Softplus": jax.nn.softplus,
    "activation.Hardtanh": jax.nn.hard_tanh,
}
"""Activations of a dense layer, by the names of their classes in ``torch.nn.modules``."""
_LAYER_NORM_EPSILON = 1e-5


class Normalize(NamedTuple):
    """Division of a vector by its Euclidean norm."""

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return unit vectors."""
        return normalize(vectors)


class LayerNorm(NamedTuple):
    """Layer norm of a vector."""

    scale: np.ndarray
    bias: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return normalized vectors."""
        centered = vectors - vectors.mean(-1, keepdims=True)
        variance = np.square(centered).mean(-1, keepdims=True)
        return centered / np.sqrt(variance + _LAYER_NORM_EPSILON) * self.scale + self.bias


class Dense(NamedTuple):
    """A dense layer with an activation."""

    kernel: np.ndarray
    """float32 [D, C]."""
    bias: np.ndarray
    """float32 [C]."""
    activation: str
    """Name of the class in ``torch.nn.modules``."""
    residual: np.ndarray | None = None
    """float32 [D, C]; the product with it is added to the output."""

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return the outputs [N, C].

        Raises:
          UserError: the vectors have another width than the kernel.
        """
        if vectors.shape[-1] != len(self.kernel):
            raise UserError(
                f"The Dense module takes vectors of {len(self.kernel)} numbers, but pooling gives {vectors.shape[-1]}; choose the "
                "pooling that the model was trained with."
            )
        outputs = np.asarray(ACTIVATIONS[self.activation](vectors @ self.kernel + self.bias))
        return outputs if self.residual is None else outputs + vectors @ self.residual


Layer = Dense | LayerNorm | Normalize


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceEmbedding:
    """What turns the states of a text into one vector, and texts into what the model was trained on."""

    pooling: tuple[Pooling, ...] = ("mean",)
    """Poolings whose vectors are concatenated."""
    layers: tuple[Layer, ...] = ()
    """Applied to the pooled vectors, in order."""
    sequence_length: int | None = None
    """Longer texts are truncated to this number of tokens, special tokens included."""
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts to put before a text, by name."""
    default_prompt: str | None = None
    """Name of the prompt that every text gets."""
    include_prompt: bool = True
    """Whether the tokens of the prompt are pooled too."""
    similarity: str | None = None
    """Name of the function that sentence-transformers compares vectors with."""

    def find_prompt(self, prompt: str | None = None, name: str | None = None) -> str:
        """The text to put before each text.

        Args:
          prompt: the text itself.
          name: name of a prompt; None with ``prompt`` None: the default prompt.

        Raises:
          UserError: there is no prompt of this name, or both arguments are given.
        """
        if prompt is not None and name is not None:
            raise UserError("Give prompt or prompt_name, not both.")
        name = self.default_prompt if name is None else name
        if prompt is not None or name is None:
            return prompt or ""
        if name not in self.prompts:
            raise UserError(f"The model has no prompt {name!r}; it has {', '.join(map(repr, self.prompts)) or 'none'}.")
        return self.prompts[name]

    def describe(self) -> list[str]:
        """One line for each step, for people."""
        pooled = " + ".join(self.pooling)
        lines = [f"pooling {pooled}{'' if self.include_prompt else ' without the prompt'}"]
        for layer in self.layers:
            match layer:
                case Dense():
                    sizes = f"{layer.kernel.shape[0]} -> {layer.kernel.shape[1]}"
                    lines.append(
                        f"dense {sizes}, {layer.activation.rpartition('.')[2]}{', residual' * (layer.residual is not None)}"
                    )
                case LayerNorm():
                    lines.append("layer norm")
                case Normalize():
                    lines.append("normalize")
        if self.sequence_length is not None:
            lines.append(f"truncate to {self.sequence_length} tokens")
        lines += [f"prompt {name!r}: {text!r}{' (default)' * (name == self.default_prompt)}" for name, text in self.prompts.items()]
        return lines


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors [..., D] by their Euclidean norms."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
