"""Real text for the notebooks: Python's own language reference, which comes with Python."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

from bert_jax import tokenizers
from bert_jax.data.corpus import Corpus, open_corpus, write_corpus


def corpus(directory: str, *, pieces: int = 2000) -> Corpus:
    """A corpus of the reference's topics with a vocabulary of its own; made once, in seconds."""
    if not Path(directory).exists():
        documents = [[" ".join(part.split()) for part in text.split("\n\n") if part.split()] for text in topics.values()]
        documents = [document for document in documents if len(document) > 1]
        tokenizer = tokenizers.train(lambda: (line for document in documents for line in document), kind="wordpiece", size=pieces)
        write_corpus(lambda: documents, directory, tokenizer, held_out=0.05)
    return open_corpus(directory)
