"""The paper's "No NSP" ablation (section 5.1, table 5) at the size of the quickstart: contiguous text, no NSP loss.

    bert-jax pretrain experiments/no_nsp.py            # after `make pretrain`, which prepares the corpus
    bert-jax finetune classify --init runs/no_nsp --data TABLES --run runs/no_nsp_classify

Results of BERT-Base in the paper:

               MNLI   QNLI   MRPC   SST-2   SQuAD F1
    no NSP     83.9   84.9   86.5   92.6    87.9
    BERT       84.4   88.4   86.7   92.7    88.5
"""

import dataclasses
import runpy
from pathlib import Path

import bert_jax


def config() -> bert_jax.Config:
    """Return the quickstart's config without sentence pairs."""
    base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]()
    return dataclasses.replace(base, run="runs/no_nsp", data=dataclasses.replace(base.data, pairs=False))
