"""Reads a model with transformers: the program of a process of its own, which uses neither JAX nor this package.

Its argument is a directory with ``request.json``; it writes ``ids.json`` and ``outputs.npz`` there.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any


def main(scratch: pathlib.Path) -> None:
    """Compute ids of texts, and outputs of arrays, and write them."""
    import numpy as np
    import torch
    import transformers

    request = json.loads((scratch / "request.json").read_text())
    directory, texts = request["directory"], request["texts"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    options = {"truncation": True, "max_length": request["max_length"]}
    ids = [tokenizer(first, second, **options)["input_ids"] for first, second in pairs]
    (scratch / "ids.json").write_text(json.dumps(ids))

    arrays = {name: torch.tensor(request[name]) for name in ("input_ids", "attention_mask", "token_type_ids")}
    valid = arrays["attention_mask"][..., None]
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        encoder = transformers.BertModel.from_pretrained(directory, dtype=torch.float32).eval()
        encoded = encoder(**arrays)
        outputs["hidden"] = encoded.last_hidden_state * valid
        if request["has_pooler"]:
            outputs["pooled"] = encoded.pooler_output
        for head, name in request["classes"].items():
            model = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32).eval()
            is_choice = head == "multiple_choice"
            result = model(**{key: value[:, None] if is_choice else value for key, value in arrays.items()})
            logits = torch.stack([result.start_logits, result.end_logits], -1) if "start_logits" in result else result.logits
            outputs[head] = logits * valid if logits.ndim == 3 else logits
    if request["embed"]:
        import sentence_transformers

        model = sentence_transformers.SentenceTransformer(directory, device="cpu")
        outputs["embedding"] = torch.tensor(model.encode([text for text in texts if isinstance(text, str)]))
    np.savez(scratch / "outputs.npz", **{name: value.numpy() for name, value in outputs.items()})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
