"""Quickstart."""

import bert_jax


def config():
    return bert_jax.Config(
        run="/tmp/x/run",
        data=bert_jax.DataConfig("/tmp/x/c", sequence_length=64, batch_size=64),
        model=bert_jax.ModelConfig(
            vocab_size=8192,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=2e-3, warmup_steps=50),
        train=bert_jax.TrainConfig(steps=300, eval_every=100, save_every=100, log_every=10),
    )
