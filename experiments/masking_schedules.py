"""The controls of "Dynamic Masking Rate Schedules for MLM Pretraining" (Ankner et al., EACL 2024), small enough for two CPU cores.

    python experiments/masking_schedules.py CORPUS --out runs/schedules
    python experiments/masking_schedules.py CORPUS --out runs/schedules --steps 1200 --seeds 3 --size tiny

CORPUS is what `bert-jax prepare` wrote. Each policy is pretrained with each seed, paired: runs of a seed begin with the same
parameters and read the same examples in the same order. All are scored on the held-out split with the same masks at four rates.
Runs go on where they were stopped. The table is printed and written beside the picture.
"""

import argparse
from pathlib import Path

import bert_jax
from bert_jax.training import plots

CONSTANT = "0.15"
POLICIES = {
    CONSTANT: bert_jax.MaskPolicy(rate=0.15),
    "0.30": bert_jax.MaskPolicy(rate=0.3),
    "0.30 to 0.15": bert_jax.MaskPolicy(rate="linear(0.3, 0.15)"),
    "0.15 to 0.30": bert_jax.MaskPolicy(rate="linear(0.15, 0.3)"),
    "0.30 to 0.15, of which 0.15 predicted": bert_jax.MaskPolicy(rate="linear(0.3, 0.15)", predict=0.15),
}
RATES = (0.15, 0.3, 0.4, 0.8)


def config(options: argparse.Namespace, name: str, policy: bert_jax.MaskPolicy) -> bert_jax.Config:
    """The quickstart's model and optimizer, with a policy."""
    return bert_jax.Config(
        run=str(options.out / name.replace(" ", "-").replace(",", "")),
        data=bert_jax.DataConfig(corpus=options.corpus, sequence_length=options.length, batch_size=options.batch_size),
        model=bert_jax.ModelConfig.size(
            options.size,
            vocab_size=options.vocab_size,
            max_position_embeddings=128,
            initializer_range=0.05,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        mask=policy,
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=options.learning_rate, warmup_steps=50, decay="from_peak"),
        train=bert_jax.TrainConfig(
            steps=options.steps,
            eval_every=max(options.steps // 6, 1),
            save_every=options.steps,
            keep=1,
            log_every=10,
            eval_batches=20,
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    try:
        found = bert_jax.sweep(
            {name: config(options, name, policy) for name, policy in POLICIES.items()}, seeds=options.seeds, rates=RATES
        )
    except bert_jax.UserError as error:
        raise SystemExit(f"masking_schedules.py: {error}") from None
    table = found.table([f"{rate:g}" for rate in RATES], against=CONSTANT)
    print(f"Held-out nats at fixed rates; {options.seeds} seeds, {options.steps} steps of {options.batch_size} x {options.length}")
    print(table)
    (options.out / "table.md").write_text(table + "\n")
    plots.curves(found.runs).savefig(options.out / "curves.png", dpi=150)


if __name__ == "__main__":
    main()
