"""Pods: planning, checking and replaying runs."""
