"""A model asked a task's questions: to score it, or to answer a file of any size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import numpy as np
from etils import epath

from bert_jax.checkpoints import BEST
from bert_jax.config.finetuning import FinetuneConfig, Reading, TaskName
from bert_jax.config.run import MeshConfig, ModelConfig
from bert_jax.config.validation import read_json, require
from bert_jax.convert import Head
from bert_jax.data.pipeline import HostBatch
from bert_jax.errors import UserError
from bert_jax.inference import bert
from bert_jax.inference.bert import Bert
from bert_jax.models.encoder import Params
from bert_jax.tasks import registry
from bert_jax.tasks.example import Example, Source
from bert_jax.tasks.layout import Layout, once
from bert_jax.tokenizers import Tokenizer
from bert_jax.training import launchers, losses
from bert_jax.training.launchers import Launcher
from bert_jax.training.logging import Scores, read_metrics
from bert_jax.training.trainer import CONFIG, Clock

# Pieces that are scored at a time, on each device.
_TOKENS = {"cpu": 4096}
_TOKENS_ELSEWHERE = 65536
_THRESHOLD = "best_f1_thresh"
_MESH = MeshConfig()

Outputs = list[np.ndarray]


@dataclasses.dataclass
class Scorer:
    """A model's scores of examples, each exactly once, on any mesh."""

    model: ModelConfig
    layout: Layout
    launcher: Launcher
    members: int = 0
    """Models that are asked at a time; 0: one, without an axis for it."""

    def __post_init__(self) -> None:
        self._logits = self.launcher.compile_rows(functools.partial(losses.task_logits, self.model, head=self.layout.head))
        tokens = _TOKENS.get(jax.default_backend(), _TOKENS_ELSEWHERE) * self.launcher.shards
        self._rows = self.layout.rows(max(1, tokens // self.layout.width))

    def __call__(
        self, params: Params | list[Params], examples: Sequence[Example], asked: Clock = lambda: False
    ) -> list[Outputs] | None:
        """For each model, the scores of each example; None where it was given up."""
        count = max(self.members, 1)
        found: list[Outputs] = [[np.empty(0)] * len(examples) for _ in range(count)]
        before: tuple[Any, dict[int, Any]] | None = None
        for batch, places in once(examples, self.layout, self._rows):
            if asked():
                return None
            # The device computes this batch while the host handles the one before.
            logits = self._logits(params, self._place(batch))
            if before:
                self._spread(found, examples, *before)
            before = logits, places
        if before:
            self._spread(found, examples, *before)
        return found

    def _place(self, batch: HostBatch) -> Any:
        local = self.launcher.rows(self._rows)
        mine = {name: value[local] for name, value in batch.items() if name not in ("labels", "weights")}
        if self.members:
            mine = {name: np.broadcast_to(value, (self.members, *value.shape)) for name, value in mine.items()}
        return self.launcher.place(mine)

    def _spread(self, found: list[Outputs], examples: Sequence[Example], logits: Any, places: dict[int, Any]) -> None:
        values = self.launcher.collect(logits)
        for outputs, mine in zip(found, values if self.members else [values], strict=True):
            for number, place in places.items():
                outputs[number] = np.array(self.layout.scores(mine, examples[number], place))


@dataclasses.dataclass(frozen=True)
class Asker:
    """A model, the task it was trained for, and how that task's data are read."""

    bert: Bert
    task: TaskName
    reading: Reading
    threshold: float
    """Null odds above which a question is not answered (SQuAD 2.0)."""

    @classmethod
    def load(
        cls,
        path: epath.PathLike,
        *,
        task: TaskName | None = None,
        reading: Reading | None = None,
        labels: Sequence[str] = (),
        threshold: float | None = None,
    ) -> Asker:
        """Load a model with what its run knows of its task.

        Args:
          path: a fine-tuning run, or a model of any format with the head that the task needs.
          task: the task's name; that of the run where not given.
          reading: how data are read; as in the run where not given.
          labels: names of the head's outputs, where the model does not know them or calls them otherwise.
          threshold: null odds above which a question is not answered; where not given, the one that was best on the
            development questions of the run, or 0.

        Raises:
          UserError: there is no model, no task, no head for it, or other labels than outputs.
        """
        run = run_config(path)
        require(epath.Path(path).exists(), f"There is no model {path}; give a fine-tuning run or a model's directory.")
        task = task or (run.task if run else None)
        if task is None:
            raise UserError(f"{path} is not a fine-tuning run, so that its task is not known; name it with --task.")
        wanted = registry.head(task)
        if run and run.members > 1 and epath.Path(path).name != BEST and not (epath.Path(path) / BEST).exists():
            raise UserError(f"{path} holds {run.members} runs that have not been scored yet; let it go on to its first evaluation.")
        ambiguous: dict[str, Head] = {name: name for name in get_args(Head)}
        model = bert.load(path, head=None if run else ambiguous.get(wanted))
        if wanted not in model.params:
            others = ", ".join(name for name in model.params if name not in ("bert", "readout")) or "none"
            raise UserError(f"{path} has no {wanted} head, which {task} needs; its heads: {others}. Fine-tune it first.")
        count = model.params[wanted]["bias"].shape[-1]
        names = tuple(labels) or model.labels
        if wanted in ("classify", "tag"):
            require(len(names) > 0, f"{path} does not say what its {count} outputs mean; name them, in order, with --labels.")
            require(len(names) == count, f"{len(names)} labels are given for {count} outputs.")
        if threshold is None:
            threshold = _best_threshold(path, task) if run else 0.0
        reading = reading or (run.reading if run else Reading())
        return cls(dataclasses.replace(model, labels=names), task, reading, threshold)

    def evaluate(
        self, data: str, *, split: str | None = None, out: epath.PathLike | None = None, mesh: MeshConfig = _MESH
    ) -> dict[str, Scores]:
        """Official scores of each split that the task is evaluated on, or of one.

        Args:
          data: directory, prefix, or tfds:NAME, as for fine-tuning.
          split: "dev", "test", of MNLI also "dev_mismatched"; all development splits where not given.
          out: directory that gets the files which a server or an official script reads. A test split without labels has
            them alone, and no scores.
          mesh: how devices share out the work; rows over all of them where not given.

        Raises:
          UserError: as the readers of files say.
        """
        source, found, score = self._source(data), {}, None
        for name in (split,) if split else registry.splits(self.task):
            part = registry.split(source, name, self.bert.labels, threshold=self.threshold)
            score = score or self._scorer(part.examples, mesh)
            outputs = score(part.examples)
            if out is not None:
                epath.Path(out).mkdir(parents=True, exist_ok=True)
                part.write(outputs, epath.Path(out))
            if out is None or not name.startswith("test") or any(example.label is not None for example in part.examples):
                found[name] = part.score(outputs)
        return found

    def predict(self, path: epath.PathLike, *, mesh: MeshConfig = _MESH) -> Iterator[dict[str, Any]]:
        """Answers to a file's questions, in order, as a stream; any labels in it are not looked at.

        Raises:
          UserError: as the readers of files say.
        """
        score = None
        for asked in registry.stream(self._source(""), path, self.bert.labels, threshold=self.threshold):
            score = score or self._scorer(asked.examples, mesh)
            yield from asked.results(score(asked.examples))

    def _source(self, data: str) -> Source:
        most = self.bert.config.max_position_embeddings
        require(self.reading.length <= most, f"The length of {self.reading.length} pieces is above the model's {most} positions.")
        return Source(self.task, data, self.reading, self._tokenizer())

    def _tokenizer(self) -> Tokenizer:
        if self.bert.tokenizer is None:
            raise UserError("The model came without a vocabulary; put its vocab.txt beside the weights and load it again.")
        return self.bert.tokenizer

    def _scorer(self, examples: Sequence[Example], mesh: MeshConfig) -> Callable[[Sequence[Example]], Outputs]:
        """What scores examples with as many parts as these have."""
        model, specials, parts = self.bert.config, self._tokenizer().specials, len(examples[0].parts)
        launcher = launchers.for_model(model, mesh, "mesh")
        layout = Layout(
            registry.head(self.task), self.reading.length * parts, parts, self.reading.packing, specials.pad, launcher.shards
        )
        score = Scorer(model, layout, launcher)
        shapes = jax.eval_shape(lambda: self.bert.params)
        params = jax.device_put(self.bert.params, launcher.shardings(shapes))

        def answer(examples: Sequence[Example]) -> Outputs:
            with launcher.context():
                found = score(params, examples)
            return found[0] if found else []

        return answer


def run_config(path: epath.PathLike) -> FinetuneConfig | None:
    """The config of the fine-tuning run that a path belongs to, if it does."""
    path = epath.Path(path)
    file = (path.parent if path.name == BEST else path) / CONFIG
    if not file.is_file() or "task" not in read_json(file):
        return None
    return FinetuneConfig.from_json(file.read_text())


def _best_threshold(path: epath.PathLike, task: str) -> float:
    path = epath.Path(path)
    lines = read_metrics(path.parent if path.name == BEST else path)
    scored = [line for line in lines if _THRESHOLD in line]
    return float(max(scored, key=lambda line: line[registry.main_score(task)])[_THRESHOLD]) if scored else 0.0
