"""From text to batches, with NumPy, TFDS and Grain; nothing here imports JAX."""
