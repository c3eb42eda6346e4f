"""Configuration dataclasses, validated when they are made."""
