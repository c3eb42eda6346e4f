"""Losses, optimizers, the step, launchers, the trainer, and its two jobs."""
