"""Pseudo-log-likelihoods and minimal pairs, compared with their definitions and with transformers."""

from __future__ import annotations

import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest
import torch
import transformers

import bert_jax
from bert_jax import cli
from bert_jax.errors import UserError
from bert_jax.evaluation import minimal_pairs
from bert_jax.inference import likelihood
from bert_jax.inference.bert import Bert
from tests import reference
from tests.conftest import MODEL

pytestmark = pytest.mark.usefixtures("unoptimized")

# Words of the text from which the vocabulary was learned, and others that are cut into pieces.
PAIRS = [
    ("alpha bravo charlie.", "alpha bravo delta.", "order", "words"),
    ("a golfing bravissimo, echo", "a golfer bravissimo, echo", "pieces", "words"),
    ("delta echo", "echo delta", "order", "words"),
    ("charlie, alphabetical", "charlie alphabetical", "comma", "signs"),
]


@pytest.fixture(scope="module")
def bert(tokenizer):
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens), initializer_range=0.3)
    return Bert(config, bert_jax.models.heads.init_params(config, jax.random.key(0)), tokenizer)


@pytest.fixture
def blimp(tmp_path):
    path = tmp_path / "blimp.jsonl"
    names = ("sentence_good", "sentence_bad", "UID", "linguistics_term")
    path.write_text("".join(json.dumps(dict(zip(names, pair, strict=True)) | {"field": "syntax"}) + "\n" for pair in PAIRS))
    return path


@pytest.mark.parametrize("scoring", ["token", "within-word"])
def test_pseudo_log_likelihood_is_that_of_the_reference(bert, scoring):
    texts = ["alpha bravo charlie.", ("delta alphabetical echo", "golfing"), *(text for pair in PAIRS for text in pair[:2])]
    result = bert.pseudo_log_likelihood(texts, scoring=scoring)
    special, tokens = bert.tokenizer.special_tokens, bert.tokenizer.tokens
    params, longest = jax.tree.map(lambda x: np.asarray(x, np.float64), bert.params), 0
    for text, value in zip(texts, result, strict=True):
        parts = [part.ids for part in bert.tokenizer.encode([text] if isinstance(text, str) else [*text])]
        ids = np.concatenate([[special.cls], *(np.append(part, special.sep) for part in parts)])
        types = np.repeat(np.arange(len(parts)), [len(part) + 1 + (number == 0) for number, part in enumerate(parts)])
        total = 0.0
        for place in np.flatnonzero(~np.isin(ids, (special.cls, special.sep))):
            end = place + 1
            while scoring == "within-word" and tokens[ids[end]].startswith("##"):
                end += 1
            longest, columns = max(longest, end - place), np.arange(len(ids))
            masked = np.where((columns >= place) & (columns < end), special.mask, ids)
            hidden, _ = reference.encode_one(bert.config, params["bert"], masked, types)
            total += np.log(reference.softmax(reference.mlm_logits(bert.config, params, hidden[[place]]))[0, ids[place]])
        assert value == pytest.approx(total, rel=1e-4)
    assert (longest > 1) == (scoring == "within-word")


def test_pairs_are_scored_as_by_the_pipeline_of_babylm_on_the_exported_model(bert, blimp, tmp_path):
    """Its backend "mlm" masks the tokens with characters one at a time, in transformers (babylm-eval 45fe2c1)."""
    bert_jax.save(bert, tmp_path / "exported", to="hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "exported").eval()

    def score(text):
        encoded, total = tokenizer(text, return_offsets_mapping=True), 0.0
        for place, (_, end) in enumerate(encoded["offset_mapping"]):
            if end > 0:
                ids = torch.tensor([encoded["input_ids"]])
                ids[0, place] = tokenizer.mask_token_id
                with torch.no_grad():
                    total += torch.log_softmax(model(ids).logits[0, place], -1)[encoded["input_ids"][place]].item()
        return total

    report = minimal_pairs.score(bert, blimp)
    expected = np.array([[score(text) for text in pair[:2]] for pair in PAIRS])
    np.testing.assert_allclose(report.likelihoods, expected, rtol=1e-5)
    right = expected[:, 0] > expected[:, 1]
    assert 0 < right.sum() < len(PAIRS)
    assert report.all == (right.mean(), 4, 0)
    assert report.paradigms == {"order": (right[[0, 2]].mean(), 2, 0), "pieces": (right[1], 1, 0), "comma": (right[3], 1, 0)}
    assert report.phenomena == {"words": (right[:3].mean(), 3, 0), "signs": (right[3], 1, 0)}
    assert report.mean == pytest.approx(np.mean([right[[0, 2]].mean(), right[1], right[3]]))


def test_a_masked_row_that_texts_share_is_computed_once(bert):
    counts = [len(ids) for ids, _ in bert.tokenizer.encode([*PAIRS[0][:2], "echo"])]
    rows = [len(likelihood._Rows(bert, bert_windows(bert, texts), texts, "token").windows) for texts in SHARED]
    # Sentences that differ in one token share the row in which it is masked; equal ones share all; a row has two labels.
    assert counts[0] == counts[1]
    assert rows == [2 * counts[0] - 1, counts[0], counts[0] + 2 * (counts[0] - 1) + 1]
    for texts in SHARED:
        together = bert.pseudo_log_likelihood(texts)
        np.testing.assert_allclose(together, [bert.pseudo_log_likelihood([text])[0] for text in texts], rtol=1e-5)


SHARED = [
    ["alpha bravo charlie.", "alpha bravo delta."],
    ["alpha bravo charlie."] * 3,
    ["alpha bravo charlie.", "alpha bravo delta.", "alpha bravo echo."],
]


def bert_windows(bert, texts):
    return likelihood.cut_texts(bert, texts, "error", None)


def test_progress_and_blocks_of_texts(bert, monkeypatch):
    texts, calls = [text for pair in PAIRS for text in pair[:2]], []
    expected = bert.pseudo_log_likelihood(texts, progress=lambda *numbers: calls.append(numbers))
    monkeypatch.setattr(likelihood, "_BLOCK", 3)
    np.testing.assert_allclose(
        bert.pseudo_log_likelihood(texts, progress=lambda *numbers: calls.append(numbers)), expected, rtol=1e-5
    )
    total = sum(len(part.ids) for part in bert.tokenizer.encode(texts))
    assert {last for _, last in calls} == {total}
    assert [done for done, _ in calls].count(total) == 2
    assert bert.pseudo_log_likelihood([]).shape == (0,)


@pytest.fixture
def prefers_short(bert, monkeypatch):
    """A model that prefers short sentences."""

    def likelihoods(self, texts, **options):
        return np.array([-len(text) for text in texts], np.float32)

    monkeypatch.setattr(Bert, "pseudo_log_likelihood", likelihoods)
    return bert


def test_files_of_every_kind(prefers_short, blimp, tmp_path):
    directory = tmp_path / "pairs"
    directory.mkdir()
    (directory / "a.tsv").write_text("phenomenon\tgood\tbad\nnumber\tA cat is.\tA cat are.\nnumber\tTwo cats are.\tTwo cat.\n")
    with gzip.open(directory / "supplement.jsonl.gz", "wt") as file:
        file.write(json.dumps({"sentence_good": "same", "sentence_bad": "even"}) + "\n")
    (directory / "notes.md").write_text("not a file of pairs")
    report = minimal_pairs.score(prefers_short, directory)
    assert report.paradigms == {"number": (0.5, 2, 0), "supplement": (0.5, 1, 1)}
    assert report.phenomena == {"number": (0.5, 2, 0)}
    assert (report.all, report.mean) == ((0.5, 3, 1), 0.5)
    (tmp_path / "other.csv").write_text("right,wrong\na,ab\n")
    assert minimal_pairs.score(prefers_short, tmp_path / "other.csv", good="right", bad="wrong").paradigms == {"other": (1, 1, 0)}
    assert len([*minimal_pairs.read([blimp, directory / "a.tsv"])]) == 6


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("pairs.tsv", "good\nA cat is.\n", "there is no column 'bad'; a file of minimal pairs has sentence_good and sentence_bad"),
        ("pairs.jsonl", '{"good": "a", "bad": " "}', r"pairs.jsonl.*'bad' has no sentence; remove the row or write one"),
        ("pairs.jsonl", '{"good": "a", "bad": 3}', r"pairs.jsonl.*'bad' has no sentence"),
        ("pairs.jsonl", "", "pairs.jsonl"),
        ("pairs.xml", "<pair/>", "The format of .*pairs.xml is unknown"),
    ],
)
def test_files_without_pairs_are_refused(prefers_short, tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        minimal_pairs.score(prefers_short, tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There are no minimal pairs; name a file or a directory of them"):
        minimal_pairs.score(prefers_short, [])
    with pytest.raises(UserError, match="has no files of pairs"):
        minimal_pairs.score(prefers_short, tmp_path / "empty")


def test_the_command(bert, blimp, tmp_path, capsys):
    bert_jax.save(bert, tmp_path / "model", to="hf")
    assert cli.main(["minimal-pairs", str(tmp_path / "model"), str(blimp), "--out", str(tmp_path / "scores.jsonl")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    report = minimal_pairs.score(bert, blimp)
    assert ["order", f"{report.paradigms['order'].accuracy:.2%}", "2", "0"] in lines
    assert ["signs", f"{report.phenomena['signs'].accuracy:.2%}", "1", "0"] in lines
    assert ["mean", "of", "paradigms", f"{report.mean:.2%}"] in lines
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(score["good"], score["bad"], score["paradigm"], score["phenomenon"]) for score in scores] == PAIRS
    found = [[score["good_log_likelihood"], score["bad_log_likelihood"]] for score in scores]
    np.testing.assert_allclose(found, report.likelihoods, rtol=1e-5)
    assert cli.main(["minimal-pairs", str(tmp_path / "model"), str(blimp), "--scoring", "within-word", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(minimal_pairs.score(bert, blimp, scoring="within-word").to_dict()))
    assert cli.main(["minimal-pairs", str(tmp_path / "model"), str(tmp_path / "missing.jsonl")]) == 2
    assert "missing.jsonl" in capsys.readouterr().err
