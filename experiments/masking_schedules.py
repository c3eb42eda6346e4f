"""The comparisons of "Dynamic Masking Rate Schedules for MLM Pretraining" (Ankner et al., EACL 2024), sized for two CPU cores.

    python experiments/masking_schedules.py CORPUS --out runs/schedules
    python experiments/masking_schedules.py CORPUS --out runs/schedules --steps 1200 --seeds 3 --size tiny

CORPUS is a directory written by `bert-jax prepare`. Each policy is pretrained with each seed. Runs of the same seed are paired:
they start with the same parameters and read the same examples in the same order. All runs are scored on the held-out split with
the same masks at four rates. The command resumes runs that were stopped. The table is printed and written to OUT/table.md, the
curves to OUT/curves.png.
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
    "0.30 to 0.15, of which 0.15 predicted": bert_jax.MaskPolicy(rate="linear(0.3, 0.15)", prediction_rate=0.15),
}
RATES = (0.15, 0.3, 0.4, 0.8)


def config(options: argparse.Namespace, name: str, policy: bert_jax.MaskPolicy) -> bert_jax.Config:
    """Return the quickstart's model and optimizer with a mask policy."""
    return bert_jax.Config(
        run=str(options.out / name.replace(" ", "-").replace(",", "")),
        data=bert_jax.DataConfig(corpus=options.corpus, sequence_length=options.sequence_length, batch_size=options.batch_size),
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
    """Train and score all runs, and write the table and the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="directory written by `bert-jax prepare`")
    parser.add_argument("--out", type=Path, required=True, help="directory of the runs and results")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each policy")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--size", default="tiny", help="model size: tiny, mini, small, medium, base or large")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    try:
        result = bert_jax.sweep(
            {name: config(options, name, policy) for name, policy in POLICIES.items()}, seeds=options.seeds, rates=RATES
        )
    except bert_jax.UserError as error:
        raise SystemExit(f"masking_schedules.py: {error}") from None
    table = result.table([f"{rate:g}" for rate in RATES], against=CONSTANT)
    print(
        f"Held-out MLM loss in nats at fixed mask rates; {options.seeds} seeds, {options.steps} steps of "
        f"{options.batch_size} x {options.sequence_length} tokens"
    )
    print(table)
    (options.out / "table.md").write_text(table + "\n")
    plots.curves(result.runs).savefig(options.out / "curves.png", dpi=150)


if __name__ == "__main__":
    main()
