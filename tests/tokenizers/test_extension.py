"""Extended vocabularies: what keeps its id, which tokens are new, and that transformers reads them alike."""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys

import pytest
import tokenizers as library
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import tokenizers
from bert_jax.errors import UserError
from bert_jax.tokenizers import AddedToken, WordPiece
from bert_jax.tokenizers.selection import choose

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdeilmnorstu"
SLOTS = ["[unused0]", "[unused1]", "[unused2]"]
# New tokens are whole words, beginnings and ends.
OLD = [SPECIALS[0], *SLOTS[:2], *SPECIALS[1:], *LETTERS, *(f"##{letter}" for letter in LETTERS), "man", "##al", SLOTS[2], "."]
TEXTS = [
    "Señal continental, 3 continentes.",
    "señales continentales y canciones",
    "Canción continental",
    "man manual rituales.",
] * 3
CONFIG = {"do_lower_case": True}


def make(lines=OLD, **config):
    content = json.dumps(CONFIG | config).encode()
    return WordPiece({"vocab.txt": "".join(f"{line}\n" for line in lines).encode(), "tokenizer_config.json": content})


def count_tokens(tokenizer, texts):
    """Tokens of texts, in which an unknown word is one token, by the library or by the original's rules."""
    return sum(len(row.ids) for row in tokenizer.encode(texts))


def library_length(vocab, word):
    """Number of tokens of a word by the tokenizers library."""
    model = library.models.WordPiece({token: row for row, token in enumerate(["[UNK]", *vocab])}, unk_token="[UNK]")
    return len(model.tokenize(word))


def test_old_tokens_keep_their_ids_and_unused_slots_are_filled_first():
    extension = tokenizers.extend(make(), TEXTS, 8)
    tokens = extension.tokenizer.tokens
    slots = [OLD.index(slot) for slot in SLOTS]
    assert [tokens[slot] for slot in slots] + tokens[len(OLD) :] == extension.tokens
    assert (len(extension.tokens), extension.reused) == (8, 3)
    assert not {*extension.tokens} & {*OLD}
    assert {row: token for row, token in enumerate(tokens[: len(OLD)]) if token != OLD[row]}.keys() == {*slots}
    assert extension.tokenizer.settings == make().settings
    # One new token needs one slot.
    one = tokenizers.extend(make(), TEXTS, 1)
    assert one.tokens == extension.tokens[:1]
    assert one.tokenizer.tokens == [one.tokens[0] if token == SLOTS[0] else token for token in OLD]


def test_the_text_becomes_shorter_by_what_the_extension_says():
    old = make()
    texts = [text.replace("3", "").replace(",", "").replace("y", "") for text in TEXTS]
    lengths = [count_tokens(old, texts)]
    for count in (1, 3, 8, 1000):
        extension = tokenizers.extend(old, texts, count)
        assert (extension.before.unknown, extension.after.unknown) == (0, 0)
        assert extension.before.tokens == count_tokens(old, texts)
        assert extension.after.tokens == count_tokens(extension.tokenizer, texts)
        lengths.append(extension.after.tokens)
    assert lengths == sorted({*lengths}, reverse=True)
    # In the end every word is a token, and nothing else can be saved.
    assert lengths[-1] == extension.words
    assert len(extension.tokens) < 1000


@given(
    words=st.dictionaries(st.text("ab", min_size=1, max_size=6), st.integers(1, 9), min_size=1, max_size=6),
    candidates=st.sets(st.builds(str.__add__, st.sampled_from(["", "##"]), st.text("ab", min_size=2, max_size=4)), max_size=7),
    others=st.sets(st.builds(str.__add__, st.sampled_from(["", "##"]), st.text("ab", min_size=2, max_size=4)), max_size=3),
)
def test_each_token_saves_most_of_all(words, candidates, others):
    """The whole choice against a search by brute force, with the library's longest match."""
    vocab = ["a", "b", "##a", "##b", *sorted(others)]
    expected = list[str]()
    while left := sorted({*candidates} - {*vocab, *expected}):
        lengths = {word: library_length([*vocab, *expected], word) for word in words}
        saved = {
            token: sum(
                number * (lengths[word] - library_length([*vocab, *expected, token], word)) for word, number in words.items()
            )
            for token in left
        }
        best = max(left, key=lambda token: saved[token])
        if saved[best] <= 0:
            break
        expected.append(best)
    ids = {token: row for row, token in enumerate(vocab)}
    assert choose(words, ids, candidates, 99) == expected
    assert choose(words, ids, candidates, 1) == expected[:1]


def test_a_token_that_makes_longest_matches_worse_is_not_chosen():
    vocab = {token: row for row, token in enumerate(["a", "##b", "##bcd", "##c", "##d"])}
    # With "ab", "abcd" would become ab ##c ##d.
    assert library_length([*vocab, "ab"], "abcd") > library_length(vocab, "abcd")
    assert choose({"abcd": 10, "ab": 5}, vocab, ["ab"], 1) == []
    assert choose({"abcd": 4, "ab": 5}, vocab, ["ab"], 1) == ["ab"]


def test_text_is_normalized_as_before():
    texts = ["ÉCOLE école Écoles"] * 3
    letters = [*"ecolsÉé", *(f"##{letter}" for letter in "ecolsÉCOLEé")]
    folded = tokenizers.extend(make([*SPECIALS, *letters]), texts, 9)
    assert {"ecole", "ecoles"} <= {*folded.tokens}
    cased = tokenizers.extend(make([*SPECIALS, *letters], do_lower_case=False), texts, 9)
    assert {"ÉCOLE", "école"} <= {*cased.tokens}
    accents = tokenizers.extend(make([*SPECIALS, *letters], strip_accents=False), texts, 9)
    assert "école" in accents.tokens
    assert "ecole" not in accents.tokens
    # The library deletes characters of private use, the original keeps them.
    texts = ["c\ue000l\ue000 col"] * 3
    assert "cl" in tokenizers.extend(make([*SPECIALS, *letters]), texts, 9).tokens
    google = tokenizers.extend(make([*SPECIALS, *letters], basic_tokenizer="google"), texts, 9)
    assert "c\ue000l\ue000" in google.tokens
    assert google.tokenizer.settings.rules == "google"


def test_unknown_letters_become_tokens():
    rng = random.Random(0)
    texts = [" ".join("".join(rng.choices("πσφψ", k=rng.randint(2, 5))) for _ in range(20)) for _ in range(20)]
    extension = tokenizers.extend(make(), texts, 40)
    assert extension.before == (0, 400)
    assert extension.after.unknown == 0
    assert {"π", "##π", "ψ", "##ψ"} <= {*extension.tokens}
    unk = extension.tokenizer.special_tokens.unk
    assert all(unk not in row.ids for row in extension.tokenizer.encode(texts))


DIRECTORIES = {
    "original": ({"do_lower_case": True}, []),
    "transformers": ({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}, []),
    "cased": ({"tokenizer_class": "BertTokenizer", "do_lower_case": False}, []),
    "generic": ({"tokenizer_class": "PreTrainedTokenizerFast", "clean_text": False, "max_input_chars_per_word": 9}, []),
    "added": (
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        [AddedToken("[E1]", len(OLD)), AddedToken("alman", len(OLD) + 1, normalized=True, special=False), AddedToken(SLOTS[1], 2)],
    ),
}


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_transformers_reads_the_same_ids(tmp_path, kind):
    config, added = DIRECTORIES[kind]
    old = make(**config)
    old = old.with_added(added) if added else old
    tokenizers.create(old, tmp_path / "old", exported=kind != "original")
    old = tokenizers.load(tmp_path / "old")
    extension = tokenizers.extend(old, [*TEXTS, "alman [E1] almanes"], 12)
    tokenizers.create(extension.tokenizer, tmp_path / "new", exported=True)
    new = tokenizers.load(tmp_path / "new")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    texts = [
        *TEXTS,
        "ALMAN almanes [E1]señal [MASK]",
        f"x {'ab' * 75} {'ab' * 120}",
        "\x07co\u200bntinental",
        "Continentalität",
        "",
    ]
    ids = [row.ids.tolist() for row in extension.tokenizer.encode(texts)]
    assert [row.ids.tolist() for row in new.encode(texts)] == ids
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ids
    assert new.tokens == extension.tokenizer.tokens
    # New tokens are tokens of words: they are found in words that the text of the extension does not have.
    assert not {*extension.tokens} & {*theirs.added_tokens_decoder.values(), *theirs.all_special_tokens}
    assert {*theirs.get_added_vocab()} == {token.content for token in old.settings.added}
    slots = {1, 2, OLD.index(SLOTS[2])} - {token.id for token in added}
    assert [(row, token) for row, token in enumerate(new.tokens[: len(old.tokens)]) if row not in slots] == [
        (row, token) for row, token in enumerate(old.tokens) if row not in slots
    ]
    # What is split into old tokens only, is split as before.
    before = [row.ids.tolist() for row in old.encode(texts)]
    fresh = {new.tokens.index(token) for token in extension.tokens}
    unchanged = [place for place, row in enumerate(ids) if not fresh & {*row}]
    assert unchanged
    assert [ids[place] for place in unchanged] == [before[place] for place in unchanged]
    if kind == "transformers":
        assert theirs.model_max_length == 64


PROGRAM = """
import json, sys
from bert_jax import tokenizers
from tests.tokenizers.test_extension import make, random_texts
extension = tokenizers.extend(make(), random_texts(), 100)
print(json.dumps(extension.tokenizer.tokens))
"""


def random_texts():
    """Words of random letters, many of which have equal frequencies."""
    rng = random.Random(3)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 7))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=12)) for _ in range(60)]


def test_the_result_is_the_same_in_every_process():
    here = tokenizers.extend(make(), random_texts(), 100).tokenizer.tokens
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == here
    # Nor does it depend on the order of the text.
    assert tokenizers.extend(make(), random_texts()[::-1], 100).tokenizer.tokens == here
    assert len(here) == len(OLD) + 100 - len(SLOTS)


def test_what_cannot_be_extended_is_refused():
    sentencepiece = tokenizers.train(lambda: ["a cat sat on a mat", "a dog ran"] * 9, kind="bpe", size=20)
    with pytest.raises(UserError, match=r"A SentencePiece vocabulary cannot be extended, only .*; give it added tokens"):
        tokenizers.extend(sentencepiece, TEXTS, 5)
    with pytest.raises(UserError, match="The text has no words"):
        tokenizers.extend(make(), ["", " "], 5)
    # As a line of the file, "man" would also be found in "mantel".
    whole = make(["[PAD]", *SPECIALS[1:], "a", "##a"]).with_added([AddedToken("man", 7, single_word=True, normalized=True)])
    with pytest.raises(UserError, match=r"its added token 'man' is not in vocab\.txt, and would be found in more words"):
        tokenizers.extend(whole, TEXTS, 5)


def test_a_saving_is_frequency_times_tokens():
    words = collections.Counter(word for text in random_texts() for word in text.split())
    old = make()
    extension = tokenizers.extend(old, random_texts(), 1)
    assert extension.words == words.total()
    larger = [*OLD, *extension.tokens]
    saved = sum(number * (library_length(OLD, word) - library_length(larger, word)) for word, number in words.items())
    assert extension.before.tokens - extension.after.tokens == saved > 0
