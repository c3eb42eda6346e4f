"""Runs of several processes: how they find each other, agree on what one of them decides, and notice that one fails."""

from bert_jax.processes.agreement import require_agreement
from bert_jax.processes.joining import group, join
from bert_jax.processes.messages import Group

__all__ = ["Group", "group", "join", "require_agreement"]
