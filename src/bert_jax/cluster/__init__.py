"""Runs on many devices: the memory, arithmetic, time and network that a config needs there."""
