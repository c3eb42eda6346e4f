"""Devices along each axis of the mesh."""

from __future__ import annotations

from dataclasses import dataclass

from bert_jax.config.validation import require_positive
from bert_jax.errors import UserError


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; their product is the number of devices.

    Raises:
      UserError: a value is outside its range.

    Examples:
      >>> MeshConfig(fsdp=4)
      MeshConfig(data=-1, fsdp=4, tensor=1, slices=1)
    """

    data: int = -1
    """Data-parallel devices with replicated parameters; -1: all devices that the other axes leave."""
    fsdp: int = 1
    """Data-parallel devices over which parameters and optimizer state are sharded."""
    tensor: int = 1
    """Devices over which attention heads, feed-forward units and the vocabulary are sharded."""
    slices: int = 1
    """Slices of a cluster, between which a data-center network sums gradients; the other axes divide the devices of one slice."""

    def __post_init__(self) -> None:
        if self.data != -1 and self.data <= 0:
            raise UserError(f"mesh.data is {self.data}; give a number of devices, or -1 for the rest.")
        require_positive("mesh.fsdp", self.fsdp)
        require_positive("mesh.tensor", self.tensor)
        require_positive("mesh.slices", self.slices)

    def describe(self) -> str:
        """The axes in words.

        Examples:
          >>> MeshConfig(fsdp=4).describe()
          'data -1 x fsdp 4 x tensor 1'
        """
        several = f"slices {self.slices} x " if self.slices > 1 else ""
        return f"{several}data {self.data} x fsdp {self.fsdp} x tensor {self.tensor}"

    def check_parallel(self, parallel: str) -> None:
        """Check that the mesh goes with a run's ``parallel``.

        Raises:
          UserError: the run uses ``pmap``, which has no mesh.
        """
        if parallel == "pmap" and self != MeshConfig():
            raise UserError(
                f"parallel is pmap, which replicates parameters over all devices, but the mesh is {self.describe()}; "
                "use --parallel mesh."
            )
