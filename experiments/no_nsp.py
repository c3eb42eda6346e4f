"""The paper's "No NSP" ablation (section 5.1, table 5) at the quickstart's size: contiguous text, no next-sentence loss.

    bert-jax pretrain experiments/no_nsp.py            # `make pretrain` makes the corpus
    bert-jax finetune classify --init runs/no_nsp --data mine --run runs/no_nsp_mine

The paper's Base: MNLI 83.9 (with NSP 84.4), QNLI 84.9 (88.4), MRPC 86.5 (86.7), SST-2 92.6 (92.7), SQuAD F1 87.9 (88.5).
"""

import dataclasses
import runpy
from pathlib import Path

import bert_jax


def config() -> bert_jax.Config:
    base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]()
    return dataclasses.replace(base, run="runs/no_nsp", data=dataclasses.replace(base.data, pairs=False))
