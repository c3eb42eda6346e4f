"""SQuAD: files, windows and answers, against the original's way written a second time and against numbers worked out by hand."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import tokenizers
from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.errors import BertWarning, RunError, UserError
from bert_jax.tasks import registry, squad, squad_answers
from bert_jax.tasks.example import EncodedText, Source
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS
from tests.tokenizers.test_tokenizers import basic_words, wordpieces

TOKENS = [
    *SPECIAL_TOKENS,
    "a",
    "b",
    "ab",
    "##a",
    "##b",
    "##ab",
    "##c",
    ",",
    "(",
    ")",
    "-",
    "one",
    "two",
    "three",
    "four",
    "five",
    "é",
]
WORDPIECE = tokenizers.from_files({"vocab.txt": "".join(f"{token}\n" for token in TOKENS).encode()})
INDEX = {token: number for number, token in enumerate(TOKENS)}


def document(*entries, context="One two three, (two-four) five.", version="1.1"):
    return {"version": version, "data": [{"title": "t", "paragraphs": [{"context": context, "qas": [*entries]}]}]}


def entry(name="q1", text="two", start=4, **more):
    found = {"id": name, "question": "One?", "answers": [{"text": text, "answer_start": start}]} | more
    return {key: value for key, value in found.items() if value is not ...}


def save(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def question(context, text=None, start=0, name="q", asked="one"):
    given = () if text is None else (squad.Answer(text, start),)
    return squad.Question(name, asked, context, given, text is None, f"f.json, question {name!r}")


def test_both_versions_are_read(tmp_path):
    none = entry("q2", answers=[], is_impossible=True, plausible_answers=[{"text": "five", "answer_start": 26}])
    given = document(entry(is_impossible=False), none, version="v2.0")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(given).encode()))
    for path in (save(tmp_path / "a.json", given), tmp_path / "a.json.gz"):
        first, second = squad.read(path, training=True)
        assert first.answers == (squad.Answer("two", 4),)
        assert (first.id, first.question, first.impossible, second.impossible, second.answers) == ("q1", "One?", False, True, ())
        assert first.context is second.context
    without = save(tmp_path / "test.json", document(entry(answers=...), entry("q2", answers=[])))
    assert [found.answers for found in squad.read(without, training=False)] == [(), ()]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("[1]", r"bad.json is of type list, not an object with 'data'"),
        ("{", r"bad.json is not JSON"),
        ({"version": "1.1"}, r"bad.json has no 'data'"),
        ({"data": {}}, r"bad.json: 'data' is of type dict, not a list"),
        ({"data": [{}]}, r"bad.json, data\[0\] has no 'paragraphs'"),
        ({"data": [{"paragraphs": [3]}]}, r"data\[0\], paragraphs\[0\] is of type int, not an object with 'context'"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, r"data\[0\], paragraphs\[0\] has no 'qas'"),
        ({"data": []}, r"bad.json holds no questions\."),
        (document(entry(), context=" \n"), r"paragraphs\[0\]: 'context' is ' \\n'; it must be text, not empty"),
        (document(None), r"paragraphs\[0\], qas\[0\] is null, not an object with 'id'"),
        (document(entry(id=...)), r"qas\[0\] has no 'id'"),
        (document(entry(id=7)), r"qas\[0\]: 'id' is 7; it must be text"),
        (document(entry(question="")), r"question 'q1': 'question' is ''; it must be text, not empty"),
        (document(entry(question=...)), r"question 'q1' has no 'question'"),
        (document(entry(question="\ud800")), r"question 'q1': 'question' has half a surrogate pair"),
        (document(entry(), entry()), r"question 'q1': the id occurs twice"),
        (document(entry(answers=[{"text": "two"}])), r"question 'q1', answers\[0\] has no 'answer_start'"),
        (document(entry(start=-1)), r"answers\[0\]: answer_start is -1; it must be the index of a character"),
        (document(entry(start="4")), r"answer_start is '4'"),
        (document(entry(text=" ", start=3)), r"answers\[0\]: 'text' is ' '; it must be text, not empty"),
        (
            document(entry(text="Two")),
            r"question 'q1': the answer 'Two' should be at character 4, but the context has 'two' there; repair it, or",
        ),
        (document(entry(start=90)), r"should be at character 90, but the context ends before \(it has 31 characters\)"),
        (document(entry(is_impossible=True)), r"question 'q1': is_impossible is true, but there is the answer .*'two'"),
        (document(entry(is_impossible="no")), r"question 'q1': is_impossible is 'no'; it must be true or false"),
        (document(entry(answers=[])), r"question 'q1': no answers; training needs one"),
        (document(entry(answers=...)), r"question 'q1': no answers; training needs one"),
    ],
)
def test_bad_files(tmp_path, given, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        squad.read(save(tmp_path / "bad.json", given), training=True)
    assert "bad.json" in str(raised.value)


def test_missing_files_and_broken_archives(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*none.json"):
        squad.read(tmp_path / "none.json", training=True)
    with pytest.raises(UserError, match="is a directory"):
        squad.read(tmp_path, training=True)
    for content in (b"{}", gzip.compress(b"{}" * 50)[:-9]):
        (tmp_path / "a.json.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"a.json.gz is not a whole gzip file"):
            squad.read(tmp_path / "a.json.gz", training=True)


def test_misplaced_answers_can_be_skipped(tmp_path):
    path = save(tmp_path / "a.json", document(entry("q1", start=5), entry("q2"), entry("q3", "one", 0)))
    with pytest.warns(
        BertWarning, match=r"^2 of the questions of .*a.json were left out because .* question 'q1': .* has 'wo ' there\.$"
    ):
        assert [found.id for found in squad.read(path, training=True, skip_misplaced=True)] == ["q2"]
    with pytest.warns(BertWarning, match="2 of the questions .* were kept although"):
        assert len(squad.read(path, training=False, skip_misplaced=True)) == 3
    with pytest.raises(UserError, match="holds no questions with answers at their places"):
        squad.read(save(path, document(entry(start=5))), training=True, skip_misplaced=True)


def tokens_of(text):
    return [token for word in basic_words(text, True) for token in wordpieces(word, set(TOKENS))]


def original_words(context):
    """Words between the original's white space, and the word of each character."""
    words, number, space = [], [], True
    for letter in context:
        if letter in " \t\r\n\u202f":
            space = True
        else:
            words = [*words, letter] if space else [*words[:-1], words[-1] + letter]
            space = False
        number.append(len(words) - 1)
    return words, number


def original_answer(words, number, tokens, word_of, answer):
    """First and last token, whether ``_improve_answer_span`` found them, and in how many places it might have."""
    first_word, last_word = number[answer.start], number[answer.start + len(answer.text) - 1]
    inside = [place for place, word in enumerate(word_of) if first_word <= word <= last_word]
    low, high = inside[0], inside[-1]
    wanted = " ".join(tokens_of(answer.text))
    matches = [
        (start, end)
        for start in range(low, high + 1)
        for end in range(high, start - 1, -1)
        if " ".join(tokens[start : end + 1]) == wanted
    ]
    return matches[0] if matches else (low, high), len(matches)


def original_windows(count, room, stride):
    windows, start = [], 0
    while start < count:
        length = min(count - start, room)
        windows.append((start, length))
        if start + length == count:
            break
        start += min(length, stride)
    return windows


def original_is_max_context(windows, current, place):
    best_score, best = None, None
    for number, (start, length) in enumerate(windows):
        if start <= place <= start + length - 1:
            score = min(place - start, start + length - 1 - place) + 0.01 * length
            if best_score is None or score > best_score:
                best_score, best = score, number
    return best == current


SEPARATORS = [" ", " ", "  ", "\t", "\n", "\u202f", "\u00a0", "", "", ",", "-", "(", ") "]
WORDS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "ab", "abc", "cab", "Ab", "á", "A\u0301b", "bbab", "€"]), st.sampled_from(SEPARATORS))
)


@settings(deadline=None, max_examples=300)
@given(WORDS, st.data(), st.integers(0, 4), st.integers(8, 24), st.integers(1, 20))
def test_features_are_the_originals(words, data, query, length, stride):
    context = "".join(word + separator for word, separator in [*words, ("a", "")])
    places = [place for place, letter in enumerate(context) if letter.isalnum()]
    start = data.draw(st.sampled_from(places))
    end = data.draw(st.sampled_from([place for place in places if place >= start])) + 1
    answer = squad.Answer(context[start:end], start)
    asked = data.draw(st.sampled_from(["ab", "abab-", "one, two three four"]))
    made = squad.features(
        WORDPIECE,
        [question("one two"), question(context, *answer, asked=asked)],
        sequence_length=length,
        doc_stride=stride,
        max_query_length=query,
        training=True,
    )
    made = [feature for feature in made if feature.question == 1]

    doc_words, number = original_words(context)
    word_of = [place for place, word in enumerate(doc_words) for _ in tokens_of(word)]
    tokens = [token for word in doc_words for token in tokens_of(word)]
    head = ["[CLS]", *tokens_of(asked)[:query], "[SEP]"]
    windows = original_windows(len(tokens), length - len(head) - 1, stride)
    (first, last), matches = original_answer(doc_words, number, tokens, word_of, answer)
    whole = all(letter.isspace() or letter in ",-()" for letter in (context[start - 1 : start], context[end : end + 1]) if letter)
    if not whole or matches != 1:
        # Where the annotation cuts a word, or the original finds it twice or not at all, its tokens lie in the original's words.
        spans = WORDPIECE.align([context])[0].spans
        held = [place for place, (low, high) in enumerate(spans.tolist()) if low < end and high > start]
        assert matches or first <= held[0] <= held[-1] <= last
        first, last = held[0], held[-1]
    assert len(made) == len(windows)
    for current, (feature, (low, size)) in enumerate(zip(made, windows, strict=True)):
        expected = [*head, *tokens[low : low + size], "[SEP]"]
        assert [TOKENS[token] for token in feature.text.ids] == expected
        assert feature.text.first_length == feature.offset == len(head)
        flags = [original_is_max_context(windows, current, place) for place in range(low, low + size)]
        np.testing.assert_array_equal(feature.max_context, flags)
        inside = low <= first and last <= low + size - 1
        places = [first - low + len(head), last - low + len(head)] if inside else [0, 0]
        np.testing.assert_array_equal(feature.answer, places)
        assert feature.text.ids.dtype == feature.spans.dtype == feature.answer.dtype == np.int32
        assert feature.spans.shape == (size, 2)


@pytest.mark.parametrize("tokens", [300, 330, 370, 395, 520, 700])
def test_longer_windows_have_more_context(tokens):
    """A hundredth of a window's length decides where the last one is much shorter."""
    made = squad.features(
        WORDPIECE, [question("a " * tokens)], sequence_length=264, doc_stride=190, max_query_length=4, training=False
    )
    windows = original_windows(tokens, 260, 190)
    assert windows[-1][1] <= 210
    for current, (row, (low, size)) in enumerate(zip(made, windows, strict=True)):
        flags = [original_is_max_context(windows, current, place) for place in range(low, low + size)]
        np.testing.assert_array_equal(row.max_context, flags)


def test_answers_inside_of_words():
    found = [
        ("One two-four two,", 4, "two"),
        ("two-two", 4, "two"),
        ("(two).", 1, "two"),
        ("abb two", 1, "b"),
        ("two five", 0, "two f"),
    ]
    rows = squad.features(
        WORDPIECE,
        [question(text, answer, start) for text, start, answer in found],
        sequence_length=20,
        max_query_length=4,
        training=True,
    )
    sliced = []
    for (text, _, _), row in zip(found, rows, strict=True):
        first, last = row.answer - row.offset
        sliced.append(text[row.spans[first, 0] : row.spans[last, 1]])
    # A token that the annotation cuts is taken whole; of two equal ones the right one.
    assert sliced == ["two", "two", "two", "ab", "two five"]
    assert rows[1].answer.tolist() == [rows[1].offset + 2] * 2


def test_features_without_places():
    impossible = question("one two")
    (trained,) = squad.features(WORDPIECE, [impossible], sequence_length=20, max_query_length=4, training=True)
    (asked,) = squad.features(WORDPIECE, [impossible], sequence_length=20, max_query_length=4, training=False)
    assert trained.answer.tolist() == [0, 0]
    assert asked.answer is None
    assert asked.text.ids.tolist() == [INDEX[token] for token in ("[CLS]", "one", "[SEP]", "one", "two", "[SEP]")]
    for questions, options, sentence in (
        (
            [impossible],
            {"sequence_length": 67},
            r"sequence_length is 67; it must be greater than max_query_length \+ 3, which is 67",
        ),
        ([impossible], {"doc_stride": 0}, "doc_stride is 0"),
        ([question("\u200b", "\u200b")], {}, "question 'q': the context has no tokens"),
        ([question("one \u200b", "\u200b", 4)], {}, r"the answer '\\u200b' has no tokens"),
        ([impossible._replace(impossible=False)], {}, "question 'q': no answers; training needs one"),
    ):
        with pytest.raises(UserError, match=sentence):
            squad.features(WORDPIECE, questions, training=True, **options)


CONTEXT = "One two three, (two-four) five."


def test_known_logits_give_known_files(tmp_path):
    questions = [question(CONTEXT, name="q1"), question(CONTEXT, name="q2")]
    made = squad.features(WORDPIECE, questions, sequence_length=30, max_query_length=4, training=False)
    # [CLS] one [SEP] | one two three , ( two - four ) five . | [SEP]
    assert [row.text.ids.size for row in made] == [15, 15]
    starts, ends = np.zeros((2, 15), np.float32), np.zeros((2, 15), np.float32)
    starts[0, [8, 4, 0]], ends[0, [10, 8, 4]] = [4, 3, 1], [4, 2, 1]
    starts[1, [0, 12]], ends[1, [0, 12]] = [5, 1], [2, 2.5]
    found = squad_answers.answer(questions, made, [*starts], [*ends], n_best=3, negative=True)
    assert found.predictions == {"q1": "two-four", "q2": ""}
    # Sums: 8 for 8..10, 7 for 4..10, 6 for 8..8; no answer (1 + 0) is added though it is not among the three.
    total = math.exp(0) + math.exp(-1) + math.exp(-2) + math.exp(-7)
    assert found.nbest["q1"] == [
        {"text": "two-four", "probability": pytest.approx(1 / total), "start_logit": 4, "end_logit": 4},
        {"text": "two three, (two-four", "probability": pytest.approx(math.exp(-1) / total), "start_logit": 3, "end_logit": 4},
        {"text": "two", "probability": pytest.approx(math.exp(-2) / total), "start_logit": 4, "end_logit": 2},
        {"text": "", "probability": pytest.approx(math.exp(-7) / total), "start_logit": 1, "end_logit": 0},
    ]
    assert found.null_odds == {"q1": -7, "q2": 3.5}
    assert [entry["text"] for entry in found.nbest["q2"]] == ["", "five"]
    assert squad_answers.answer(questions, made, [*starts], [*ends], threshold=3.5, negative=True).predictions["q2"] == "five"

    squad_answers.write(found, tmp_path / "new")
    assert (tmp_path / "new" / "predictions.json").read_text() == '{\n    "q1": "two-four",\n    "q2": ""\n}\n'
    assert (tmp_path / "new" / "null_odds.json").read_text() == '{\n    "q1": -7.0,\n    "q2": 3.5\n}\n'
    stored = json.loads((tmp_path / "new" / "nbest_predictions.json").read_text())
    assert stored == found.nbest
    assert [*stored["q1"][0]] == ["text", "probability", "start_logit", "end_logit"]
    squad_answers.write(squad_answers.answer(questions, made, [*starts], [*ends], negative=False), tmp_path / "old")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["nbest_predictions.json", "predictions.json"]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "null_odds.json").write_text("mine")
    with pytest.raises(UserError, match=r"null_odds.json exists already"):
        squad_answers.write(found, tmp_path / "half")
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["null_odds.json"]


def original_nbest(question, features, starts, ends, n_best, longest, negative):
    """The list of ``write_predictions``, its texts sliced, and the odds of no answer."""
    listed, null = [], (1_000_000.0, 0.0, 0.0)
    for feature, start, end in zip(features, starts, ends, strict=True):
        start, end = [float(logit) for logit in start], [float(logit) for logit in end]
        if negative and start[0] + end[0] < null[0]:
            null = (start[0] + end[0], start[0], end[0])
        for first in sorted(range(len(start)), key=lambda place: start[place], reverse=True)[:n_best]:
            for last in sorted(range(len(end)), key=lambda place: end[place], reverse=True)[:n_best]:
                inside = range(feature.offset, feature.offset + len(feature.spans))
                if first not in inside or last not in inside or not feature.max_context[first - feature.offset]:
                    continue
                if last < first or last - first + 1 > longest:
                    continue
                low, high = feature.spans[first - feature.offset, 0], feature.spans[last - feature.offset, 1]
                listed.append((question.context[low:high].strip(), start[first], end[last]))
    listed = [found for found in listed if found[0]]
    if negative:
        listed.append(("", *null[1:]))
    listed.sort(key=lambda found: found[1] + found[2], reverse=True)
    kept = {}
    for found in listed:
        if len(kept) < n_best:
            kept.setdefault(found[0], found)
    if negative:
        kept.setdefault("", ("", *null[1:]))
    best = next((found for found in kept.values() if found[0]), ("", 0.0, 0.0))
    return [*kept.values()] or [("empty", 0.0, 0.0)], null[0] - best[1] - best[2]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.booleans(), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_answers_are_the_originals(seed, negative, n_best, longest, ties):
    rng = np.random.default_rng(seed)
    questions = [
        question(
            "".join(rng.choice(["ab", "á", "abc", "one", "two", "a\u0301", ",", "\u00a0", " ", " "], 40)) + "one", name=f"q{n}"
        )
        for n in range(3)
    ]
    made = squad.features(WORDPIECE, questions, sequence_length=14, doc_stride=5, max_query_length=2, training=False)
    logits = [rng.normal(0, 2, (2, len(row.text.ids))).astype(np.float32) for row in made]
    starts, ends = zip(*(row.round() if ties else row for row in logits), strict=True)
    options = {"n_best": n_best, "max_answer_length": longest, "threshold": 0.5, "negative": negative}
    found = squad_answers.answer(questions, made, starts, ends, **options)
    assert [*found.predictions] == [*found.nbest] == ["q0", "q1", "q2"]
    slices = []
    for number, asked in enumerate(questions):
        mine = [place for place, row in enumerate(made) if row.question == number]
        given = [[column[place] for place in mine] for column in (made, starts, ends)]
        expected, odds = original_nbest(asked, *given, n_best, longest, negative)
        listed = found.nbest[asked.id]
        assert [(entry["text"], entry["start_logit"], entry["end_logit"]) for entry in listed] == expected
        scores = np.array([start + end for _, start, end in expected])
        np.testing.assert_allclose([entry["probability"] for entry in listed], np.exp(scores) / np.exp(scores).sum(), rtol=1e-12)
        if negative:
            assert found.null_odds[asked.id] == odds
            expected = [entry for entry in expected if entry[0]] if odds <= 0.5 else []
        assert found.predictions[asked.id] == (expected[0][0] if expected else "")
        assert found.predictions[asked.id] in asked.context or (listed[0]["text"] == "empty" and not negative)
        slices.append(squad_answers.answer([asked], *given, **options))
    joined = ({key: value for part in slices for key, value in part[field].items()} for field in range(len(found)))
    assert squad_answers.Answers(*joined) == found
    assert bool(found.null_odds) == negative


def test_nothing_to_answer():
    asked = question("one two")
    (row,) = squad.features(WORDPIECE, [asked], sequence_length=20, max_query_length=4, training=False)
    starts, ends = np.zeros(6, np.float32), np.zeros(6, np.float32)
    starts[0], ends[0] = 3, 1
    assert squad_answers.answer([asked], [row], [starts], [ends], n_best=1, negative=False).nbest == {
        "q": [{"text": "empty", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}]
    }
    found = squad_answers.answer([asked], [row], [starts], [ends], n_best=1, threshold=100.0, negative=True)
    assert (found.predictions, found.null_odds, len(found.nbest["q"])) == ({"q": ""}, {"q": 4.0}, 1)


def test_spaces_are_no_answers():
    """A token of SentencePiece may be the space alone: nothing to answer with, and not a part of an answer at its ends."""
    tokens = squad.Feature(
        0, EncodedText(np.arange(6, dtype=np.int32), 3), 3, np.array([[0, 2], [3, 3]], np.int32), np.ones(2, bool), None
    )
    asked = question("ab 漢")
    logits = np.array([0, 0, 0, 1, 3, 0], np.float32)
    found = squad_answers.answer([asked], [tokens], [logits], [logits], negative=False)
    assert [(entry["text"], entry["end_logit"]) for entry in found.nbest["q"]] == [("ab", 3.0)]


def test_logits_that_do_not_fit():
    questions = [question("one two", name="q1"), question("two", name="q2")]
    made = squad.features(WORDPIECE, questions, sequence_length=20, max_query_length=4, training=False)
    logits = [np.zeros(len(row.text.ids), np.float32) for row in made]
    for arguments, kind, sentence in (
        ((questions, made, logits[:1], logits), UserError, "logits for 1 starts and 2 ends, but 2 features"),
        ((questions[:1], made, logits, logits), UserError, "features of 2 questions do not match the 1 questions"),
        ((questions, made[::-1], logits, logits), UserError, "give all features of consecutive questions, in order"),
        ((questions, made, logits[::-1], logits), UserError, r"f.json, question 'q1': logits of shapes \(5,\) and \(6,\)"),
        ((questions, made, [logits[0] * np.nan, logits[1]], logits), RunError, "question 'q1': the model's logits are not finite"),
    ):
        with pytest.raises(kind, match=sentence):
            squad_answers.answer(*arguments, negative=True)
    with pytest.raises(UserError, match="max_answer_length 0; both must be greater than 0"):
        squad_answers.answer(questions, made, logits, logits, max_answer_length=0, negative=True)
    assert squad_answers.answer([], [], [], [], negative=True) == ({}, {}, {})


def squad_split(tmp_path, *entries, skip_misplaced=False, version="1.1"):
    save(tmp_path / f"dev-v{version}.json", document(*entries, version=version))
    data = TaskDataConfig(sequence_length=64, doc_stride=8, max_query_length=8, skip_misplaced=skip_misplaced)
    return registry.get("squad" if version == "1.1" else "squad2").split(Source(str(tmp_path), data, WORDPIECE), "dev", ())


def test_what_scoring_would_refuse_is_refused_when_read(tmp_path):
    impossible = entry("q2", answers=[], is_impossible=True)
    with pytest.raises(UserError, match=r"dev-v1.1.json, question 'q2': the question has no answer, .*; use the task squad2"):
        squad_split(tmp_path, entry(), impossible)
    assert len(squad_split(tmp_path, entry(), impossible, version="2.0").examples) == 2
    unknown = squad_split(tmp_path, entry(), entry("q3", answers=[]))
    with pytest.raises(UserError, match="question 'q3': there is no answer to score against"):
        registry.get("squad").constant_score([], (), unknown)


def test_misplaced_answers_are_an_option(tmp_path):
    with pytest.raises(UserError, match="--skip-misplaced"):
        squad_split(tmp_path, entry(), entry("q2", start=5))
    with pytest.warns(BertWarning, match="1 of the questions .* kept although an answer is misplaced"):
        split = squad_split(tmp_path, entry(), entry("q2", start=5), skip_misplaced=True)
    assert len(split.examples) == 2
