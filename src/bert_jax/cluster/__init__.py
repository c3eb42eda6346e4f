"""Runs on many devices, before and while they run: what a config needs there."""
