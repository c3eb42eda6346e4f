"""From text to batches: numpy, TFDS and Grain, never jax."""
