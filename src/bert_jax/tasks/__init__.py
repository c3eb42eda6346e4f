"""The tasks of the paper and own data: their files, examples, scores and results; :mod:`bert_jax.tasks.registry` has them all."""
