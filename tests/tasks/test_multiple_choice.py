"""A question becomes a text for each ending, and the longer part of a text loses its end."""

from __future__ import annotations

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.tasks import multiple_choice, swag
from tests.tasks.test_swag import HEADER, ROWS, save


def test_a_question_becomes_a_text_for_each_ending(tmp_path, tokenizer):
    questions = swag.read(save(tmp_path, f"{HEADER}\n{ROWS}"))
    questions[2] = questions[2]._replace(label=None)
    made = multiple_choice.encode(tokenizer, questions)
    assert [example.label if example.label is None else example.label.tolist() for example in made] == [2, 0, None]
    assert made[0].label.dtype == np.int32
    assert made[0].label.shape == ()
    cls, sep = tokenizer.special_tokens.cls, tokenizer.special_tokens.sep
    for question, example in zip(questions, made, strict=True):
        assert len(example.texts) == 4
        for ending, text in zip(question.endings, example.texts, strict=True):
            first, second, third = (row.ids.tolist() for row in tokenizer.encode([question.context, question.start, ending]))
            assert text.ids.tolist() == [cls, *first, sep, *second, *third, sep]
            assert text.first_length == len(first) + 2
            assert text.ids.dtype == np.int32


def test_the_longer_text_loses_its_end(tokenizer):
    question = swag.Question("alpha " * 9, "bravo", ("charlie", "delta " * 20), 0, "0", "val.csv, line 2")
    ((short, long),) = (example.texts for example in multiple_choice.encode(tokenizer, [question], sequence_length=15))
    alpha, bravo, charlie, delta = (row.ids.tolist() for row in tokenizer.encode(["alpha", "bravo", "charlie", "delta"]))
    assert [len(alpha), len(bravo), len(charlie), len(delta)] == [1, 1, 1, 1]
    cls, sep = tokenizer.special_tokens.cls, tokenizer.special_tokens.sep
    assert short.ids.tolist() == [cls, *alpha * 9, sep, *bravo, *charlie, sep]
    assert long.ids.tolist() == [cls, *alpha * 6, sep, *bravo, *delta * 5, sep]
    assert (short.first_length, long.first_length) == (11, 8)


def test_questions_have_as_many_endings(tokenizer):
    questions = [swag.Question("a", "b", ("c",) * count, 0, str(count), f"val.csv, line {count}") for count in (2, 3)]
    with pytest.raises(UserError, match=r"val\.csv, line 3 has 3 endings, val\.csv, line 2 has 2"):
        multiple_choice.encode(tokenizer, questions)
    assert multiple_choice.encode(tokenizer, []) == []
