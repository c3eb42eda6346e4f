"""All tasks by name."""

from __future__ import annotations

from bert_jax.errors import UserError
from bert_jax.tasks import glue
from bert_jax.tasks.multilabel import MultilabelClassification
from bert_jax.tasks.multiple_choice import MultipleChoice
from bert_jax.tasks.question_answering import QuestionAnswering
from bert_jax.tasks.sequence import Regression, SequenceClassification
from bert_jax.tasks.tag_scores import accuracy_scores, entity_scores
from bert_jax.tasks.task import Task
from bert_jax.tasks.token_classification import TokenClassification

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SequenceClassification("classify"),
        Regression("regress"),
        MultilabelClassification("multilabel"),
        TokenClassification("ner", kind="ner", main_score="f1", score_tags=entity_scores),
        TokenClassification("pos", kind="pos", main_score="accuracy", score_tags=accuracy_scores),
        QuestionAnswering("squad", version="1.1"),
        QuestionAnswering("squad2", version="2.0"),
        MultipleChoice("swag"),
        *((SequenceClassification if task.labels else Regression)(name, task) for name, task in glue.TASKS.items()),
    )
}
"""The tasks, by the name that ``bert-jax finetune`` takes."""


def get(name: str) -> Task:
    """The task with a name.

    Raises:
      UserError: there is no such task.

    Examples:
      >>> get("squad2").main_score
      'best_f1'
    """
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name]
