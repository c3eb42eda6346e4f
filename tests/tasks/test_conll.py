"""CoNLL files are read as they are or refused by file and line, and written for conlleval."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.tasks import conll

FILE = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- O O

BRUSSELS NNP I-NP I-LOC
"""


def save(tmp_path, text, name="a.conll"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_of_the_shared_task(tmp_path):
    path = save(tmp_path, FILE)
    sentences = conll.read(path)
    assert sentences == [
        conll.Sentence(("EU", "rejects"), ("I-ORG", "O"), 0, 3, str(path)),
        conll.Sentence(("Peter", "Blackburn"), ("I-PER", "I-PER"), 0, 6, str(path)),
        conll.Sentence(("BRUSSELS",), ("I-LOC",), 1, 11, str(path)),
    ]
    assert sentences[1].at(1) == f"{path}, line 7"
    assert conll.read(path, column=1)[0].tags == ("NNP", "VBZ")
    assert conll.read(path, column=-2)[0].tags == ("I-NP", "I-VP")
    assert conll.read(path, tagged=False)[0].tags is None
    assert conll.labels(sentences) == ("I-LOC", "I-ORG", "I-PER", "O")
    packed = save(tmp_path, gzip.compress(FILE.encode()), "a.conll.gz")
    assert conll.read(packed) == [sentence._replace(where=str(packed)) for sentence in sentences]


def test_columns_are_divided_by_tabs_or_spaces(tmp_path):
    text = "\ufeff\r\n10 000\tO\r\nno\xa0break\tB-X \r\n \t\r\n\na   O\nb O "
    assert [(sentence.words, sentence.tags, sentence.line) for sentence in conll.read(save(tmp_path, text))] == [
        (("10 000", "no\xa0break"), ("O", "B-X"), 2),
        (("a", "b"), ("O", "O"), 6),
    ]


def test_without_marks_each_sentence_is_a_document(tmp_path):
    path = save(tmp_path, "a O\n\nb O\n\n\nc O\n")
    assert [sentence.document for sentence in conll.read(path)] == [0, 1, 2]
    # A mark may be a line of one column and needs no empty line around it.
    path = save(tmp_path, "a O\n\nb O\n-DOCSTART-\nc O\n-DOCSTART-\n\n-DOCSTART-\nd O\n")
    assert [sentence.document for sentence in conll.read(path)] == [0, 0, 1, 2]


def test_words_alone_are_read_where_no_tags_are_needed(tmp_path):
    path = save(tmp_path, "a\nb\n\nc\n")
    assert [(sentence.words, sentence.tags) for sentence in conll.read(path, tagged=False)] == [(("a", "b"), None), (("c",), None)]
    with pytest.raises(UserError, match=r"a.conll, line 1 has no tag beside 'a'; put a tab or a space"):
        conll.read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a O\nb\n", "line 2 has no tag beside 'b'"),
        ("\na O\n\nb X O\n", "line 4 has 3 columns, line 2 has 2; repair the line"),
        ("a\tO\n\tO\n", "line 2 has no word in its first column"),
        ("a\tO\nb\t\n", "line 2 has '' for a tag"),
        ("a\tO\nb\tI X\n", "line 2 has 'I X' for a tag; a tag is one word"),
        ("", "a.conll holds no words"),
        ("-DOCSTART- O\n\n", "a.conll holds no words"),
        (b"a O\n\nb\xff O\n", "line 3: byte 0xff at column 2 is not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        conll.read(save(tmp_path, text))


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*b\.conll"):
        conll.read(tmp_path / "b.conll")
    with pytest.raises(UserError, match="is a directory"):
        conll.read(tmp_path)
    with pytest.raises(UserError, match="is not a whole gzip file"):
        conll.read(save(tmp_path, gzip.compress(FILE.encode() * 100)[:-20], "a.gz"))
    with pytest.raises(UserError, match="line 1 has 2 columns, the first of which is the word; column 2 is not a tag"):
        conll.read(save(tmp_path, "a O\n"), column=2)
    with pytest.raises(UserError, match="column -2 is not a tag"):
        conll.read(save(tmp_path, "a O\n"), column=-2)


def sentences_of(text):
    tags = [tuple(part.split()) for part in text.split("/")]
    return [conll.Sentence(("w",) * len(part), part, 0, 1 + 10 * number, "a.conll") for number, part in enumerate(tags)]


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O B-X I-X O B-X B-X / B-Y", "iob2"),
        ("B-X B-Y I-Y", "iob2"),
        ("O O", "iob2"),
        ("O I-X I-X B-X I-X / I-X I-Y", "iob1"),
        # A sentence begins outside of an entity.
        ("I-X / I-X B-X", "iob1"),
        ("B-X-Y I-X-Y", "iob2"),
    ],
)
def test_the_scheme_of_entities_is_found(tags, scheme):
    assert conll.check_tags(sentences_of(tags), "ner") == scheme


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ("B-X I-X O / B-X O I-X O B-X", r"a.conll, line 13: I-X begins an entity, but elsewhere in the file B begins one \(IOB2\)"),
        (
            "B-X O B-X I-Y I-Y",
            r"line 4: I-Y begins an entity, but elsewhere in the file B begins one .*; repair the file, or .* --scheme loose",
        ),
        ("I-X O I-X / O B-X", r"line 12: B-X begins an entity, but elsewhere in the file I begins one \(IOB1\)"),
        ("I-X B-Y I-X", r"line 2: B-Y begins an entity, but elsewhere in the file I begins one"),
        ("B-X / I-X", r"line 11: I-X begins an entity, but elsewhere in the file B begins one"),
        ("O Q-X", "line 2: 'Q-X' is not a tag of an entity; convert the file to O, B-TYPE, I-TYPE"),
        ("O B", "line 2: 'B' is not a tag of an entity"),
        ("O B-", "line 2: 'B-' is not a tag of an entity"),
        ("NNP", "line 1: 'NNP' is not a tag of an entity"),
    ],
)
def test_mixed_and_other_tags_are_refused(tags, sentence):
    with pytest.raises(UserError, match=sentence):
        conll.check_tags(sentences_of(tags), "ner")
    assert conll.check_tags(sentences_of(tags), "pos") == ""


TAGS = st.lists(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1, max_size=8), min_size=1, max_size=4)


@given(TAGS)
def test_a_scheme_is_what_its_definition_says(tags):
    schemes = {"iob1", "iob2"}
    for row in tags:
        for before, tag in zip(["O", *row], row, strict=False):
            if tag[0] == "I" and before[1:] != tag[1:]:
                schemes.discard("iob2")
            if tag[0] == "B" and before[1:] != tag[1:]:
                schemes.discard("iob1")
    sentences = [conll.Sentence(("w",) * len(row), tuple(row), 0, 1, "a.conll") for row in tags]
    if schemes:
        assert conll.check_tags(sentences, "ner") == max(schemes)
    else:
        with pytest.raises(UserError, match="begins an entity"):
            conll.check_tags(sentences, "ner")


def test_what_is_written_is_what_conlleval_reads(tmp_path):
    sentences = conll.read(save(tmp_path, FILE))
    predicted = [("I-ORG", "O"), ("I-PER", "O"), ("O",)]
    conll.write(tmp_path / "out.conll", sentences, predicted)
    assert (tmp_path / "out.conll").read_text() == (
        "-DOCSTART- O O\n\nEU I-ORG I-ORG\nrejects O O\n\nPeter I-PER I-PER\nBlackburn I-PER O\n\n"
        "-DOCSTART- O O\n\nBRUSSELS I-LOC O\n\n"
    )
    back = conll.read(tmp_path / "out.conll")
    assert [(sentence.words, sentence.document) for sentence in back] == [(s.words, s.document) for s in sentences]
    assert [sentence.tags for sentence in back] == predicted
    assert [sentence.tags for sentence in conll.read(tmp_path / "out.conll", column=1)] == [s.tags for s in sentences]


def test_words_without_tags_or_documents_are_written_too(tmp_path):
    sentences = conll.read(save(tmp_path, "1 000\tx\nb\ty\n\nc\tz\n"), tagged=False)
    conll.write(tmp_path / "out.conll", sentences, [("A", "B"), ("C",)])
    assert (tmp_path / "out.conll").read_text() == "1_000 A\nb B\n\nc C\n\n"
    with pytest.raises(UserError, match="exists already"):
        conll.write(tmp_path / "out.conll", sentences, [("A", "B"), ("C",)])
    with pytest.raises(UserError, match=r"a.conll, line 1: the sentence has 2 words; 1 tags are given"):
        conll.write(tmp_path / "other.conll", sentences, [("A",), ("C",)])
    with pytest.raises(UserError, match="Tags of 1 sentences are given for 2 sentences"):
        conll.write(tmp_path / "other.conll", sentences, [("A", "B")])
    with pytest.raises(UserError, match="have no tags"):
        conll.labels(sentences)
