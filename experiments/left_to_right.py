"""The paper's "LTR & No NSP" ablation (section 5.1, table 5) at the quickstart's size: a left-to-right language model.

Each token sees only what stands before it, in pretraining and in fine-tuning; its successor is predicted. Classification reads
the last token, the only one that has seen the others. The ablation with a BiLSTM on top adds it when fine-tuning.

    bert-jax pretrain experiments/left_to_right.py     # `make pretrain` makes the corpus
    bert-jax finetune squad --init runs/left_to_right --data mine --run runs/ltr
    bert-jax finetune squad --init runs/left_to_right --data mine --run runs/ltr_lstm --lstm-layers 2

The paper's Base, and with the BiLSTM: MNLI 82.1, 82.1; QNLI 84.3, 84.1; MRPC 77.5, 75.7; SST-2 92.1, 91.6; SQuAD F1 77.8, 84.9
(bidirectional and with NSP: 84.4, 88.4, 86.7, 92.7, 88.5).
"""

import dataclasses
import runpy
from pathlib import Path

import bert_jax


def config() -> bert_jax.Config:
    base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]()
    return dataclasses.replace(
        base,
        run="runs/left_to_right",
        data=dataclasses.replace(base.data, pairs=False),
        model=dataclasses.replace(base.model, causal=True),
        mask=dataclasses.replace(base.mask, select="next"),
    )
