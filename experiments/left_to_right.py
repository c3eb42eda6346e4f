"""The paper's "LTR & No NSP" ablation (section 5.1, table 5) at the size of the quickstart: a left-to-right language model.

In pretraining and fine-tuning, each token attends only to itself and to earlier tokens; pretraining predicts the next token.
Classification reads the last token, the only one that attends to all others. In the ablation with a BiLSTM, the BiLSTM is added
for fine-tuning.

    bert-jax pretrain experiments/left_to_right.py     # after `make pretrain`, which prepares the corpus
    bert-jax finetune squad --init runs/left_to_right --data SQUAD --run runs/ltr
    bert-jax finetune squad --init runs/left_to_right --data SQUAD --run runs/ltr_lstm --model.lstm-layers 2

Results of BERT-Base in the paper:

                            MNLI   QNLI   MRPC   SST-2   SQuAD F1
    left to right, no NSP   82.1   84.3   77.5   92.1    77.8
    with a BiLSTM           82.1   84.1   75.7   91.6    84.9
    BERT                    84.4   88.4   86.7   92.7    88.5
"""

import dataclasses
import runpy
from pathlib import Path

import bert_jax


def config() -> bert_jax.Config:
    """Return the quickstart's config with a causal model."""
    base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]()
    return dataclasses.replace(
        base,
        run="runs/left_to_right",
        data=dataclasses.replace(base.data, pairs=False),
        model=dataclasses.replace(base.model, causal=True),
        mask=dataclasses.replace(base.mask, select="next"),
    )
