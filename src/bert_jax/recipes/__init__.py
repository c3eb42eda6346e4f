"""Reproduction of published tables: their recipes, the runs, and the report."""

from bert_jax.recipes.laptop import laptop
from bert_jax.recipes.tables import Column, Inputs, Row, Table, sampling_band

__all__ = ["Column", "Inputs", "Row", "Table", "laptop", "sampling_band"]
