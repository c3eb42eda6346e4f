"""Text for the notebooks: topics of the Python language reference, which are part of every Python installation."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

from bert_jax import tokenizers
from bert_jax.data.building import write_corpus
from bert_jax.data.corpus import Corpus, open_corpus


def corpus(directory: str, *, vocab_size: int = 2000) -> Corpus:
    """Open the corpus in a directory; on the first call, learn a vocabulary and write the corpus there, in seconds."""
    if not Path(directory).exists():
        documents = [[" ".join(part.split()) for part in text.split("\n\n") if part.split()] for text in topics.values()]
        documents = [document for document in documents if len(document) > 1]
        tokenizer = tokenizers.train(
            lambda: (line for document in documents for line in document), kind="wordpiece", size=vocab_size
        )
        write_corpus(documents, directory, tokenizer, held_out=0.05)
    return open_corpus(directory)
