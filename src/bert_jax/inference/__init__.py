"""A loaded model and what it computes from texts."""
