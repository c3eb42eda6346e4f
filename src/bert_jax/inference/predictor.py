"""A fine-tuned model that is scored on a task, or answers files of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
from etils import epath

from bert_jax.checkpoints import BEST
from bert_jax.config.finetuning import FinetuneConfig, TaskDataConfig, TaskName
from bert_jax.config.mesh import MeshConfig
from bert_jax.convert import Head, locate
from bert_jax.errors import UserError
from bert_jax.inference.bert import Bert
from bert_jax.inference.files import load
from bert_jax.io import atomic
from bert_jax.io.parsing import read_json
from bert_jax.models.loaded import tokenizer_of
from bert_jax.tasks import registry, summary
from bert_jax.tasks.example import Example, Source
from bert_jax.tasks.layout import RowLayout
from bert_jax.training import launchers
from bert_jax.training.logging import Scores, read_metrics
from bert_jax.training.run_directory import CONFIG
from bert_jax.training.scoring import Outputs, Scorer

_THRESHOLD = "best_f1_thresh"
_MESH = MeshConfig()


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model, the task it was trained for, and how that task's data is read.

    Examples:
      >>> import pathlib, tempfile
      >>> directory = pathlib.Path(tempfile.mkdtemp())
      >>> rows = ["label,text", "yes,good", "no,bad", "yes,good good", "no,bad bad"]
      >>> for split in ("train", "dev"):
      ...     size = (directory / f"{split}.csv").write_text("\\n".join(rows))
      >>> tokenizer = bert_jax.tokenizers.train(lambda: ["good bad"] * 9, kind="wordpiece", size=20)
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=len(tokenizer.tokens))
      >>> params = bert_jax.models.heads.init_params(config, jax.random.key(0))
      >>> report = bert_jax.save(bert_jax.Bert(config, params, tokenizer), directory / "model", to="orbax")
      >>> run = bert_jax.FinetuneConfig(
      ...     run=str(directory / "run"),
      ...     task="classify",
      ...     init=str(directory / "model"),
      ...     data=str(directory),
      ...     task_data=bert_jax.TaskDataConfig(sequence_length=16),
      ...     mesh=bert_jax.MeshConfig(data=-1),
      ...     batch_size=2,
      ...     epochs=1.0,
      ... )
      >>> bert_jax.finetune(run).step
      2
      >>> predictor = bert_jax.Predictor.load(run.run)
      >>> [prediction["id"] for prediction in predictor.predict(directory / "dev.csv")]
      ['0', '1', '2', '3']
    """

    bert: Bert
    task: TaskName
    task_data: TaskDataConfig
    threshold: float
    """Null odds above which a question is not answered (SQuAD 2.0)."""
    pairs: bool | None = None
    """Whether the model was trained on pairs of texts; None if unknown."""

    @classmethod
    def load(
        cls,
        path: epath.PathLike,
        *,
        task: TaskName | None = None,
        task_data: TaskDataConfig | None = None,
        labels: Sequence[str] = (),
        threshold: float | None = None,
    ) -> Predictor:
        """Load a model with what its run stores about its task.

        Args:
          path: a fine-tuning run, or a model of any format with the head that the task needs.
          task: the task's name; by default that of the run.
          task_data: how data is read; by default as in the run.
          labels: names of the head's outputs, where the model has none or other ones.
          threshold: null odds above which a question is not answered; by default the one that was best on the run's
            development questions, or 0.

        Raises:
          UserError: there is no model, no task, no head for it, or labels do not match the outputs.
        """
        run = run_config(path)
        if not epath.Path(path).exists():
            raise UserError(f"There is no model {path}; give a fine-tuning run or a model's directory.")
        task = task or (run.task if run else None)
        if task is None:
            raise UserError(f"{path} is not a fine-tuning run, so its task is unknown; name it with --task.")
        head = registry.get(task).head
        if run and run.num_runs > 1 and epath.Path(path).name != BEST and not (epath.Path(path) / BEST).exists():
            raise UserError(f"{path} contains {run.num_runs} runs that have not been scored; resume it to its first evaluation.")
        ambiguous: dict[str, Head] = {name: name for name in get_args(Head)}
        model = load(path, head=None if run else ambiguous.get(head))
        if head not in model.params:
            if model.problems:
                model.check(head)
            others = ", ".join(name for name in model.params if name not in ("bert", "readout")) or "none"
            raise UserError(f"{path} has no {head} head, which {task} needs; its heads: {others}. Fine-tune it first.")
        outputs, names = model.params[head]["bias"].shape[-1], tuple(labels) or model.labels
        if registry.get(task).named_outputs:
            if not names:
                model.check("labels")
                raise UserError(f"{path} does not name its {outputs} outputs; name them, in order, with --labels.")
            if len(names) != outputs:
                raise UserError(f"{len(names)} labels are given for {outputs} outputs.")
        if threshold is None:
            threshold = _best_threshold(path, task) if run else 0.0
        task_data = task_data or (run.task_data if run else TaskDataConfig())
        return cls(dataclasses.replace(model, labels=names), task, task_data, threshold, _trained_on_pairs(path) if run else None)

    def evaluate(
        self, data: str, *, split: str | None = None, out: epath.PathLike | None = None, mesh: MeshConfig = _MESH
    ) -> dict[str, Scores]:
        """Official scores of each development split of the task, or of one split.

        Args:
          data: directory, prefix, or tfds:NAME, as for fine-tuning.
          split: "dev", "test", of MNLI also "dev_mismatched"; all development splits by default.
          out: directory for the files that a server or an official script reads. A test split without labels yields
            these files and no scores.
          mesh: devices along each axis; by default all devices are data-parallel.

        Raises:
          UserError: the data cannot be read, or a file in ``out`` exists already.
        """
        task, source = registry.get(self.task), self._source(data)
        scores: dict[str, Scores] = {}
        scorer, names = None, (split,) if split else task.dev_splits
        parts = {name: task.split(source, name, self.bert.labels, threshold=self.threshold) for name in names}
        if out is not None:
            # Before anything is scored.
            for part in parts.values():
                for file in part.files:
                    atomic.require_new(epath.Path(out) / file)
        for name, part in parts.items():
            scorer = scorer or self._scorer(part.examples, mesh)
            outputs = scorer(part.examples)
            if out is not None:
                epath.Path(out).mkdir(parents=True, exist_ok=True)
                part.write(outputs, epath.Path(out))
            if out is None or not name.startswith("test") or any(example.label is not None for example in part.examples):
                scores[name] = part.score(outputs)
        return scores

    def predict(self, path: epath.PathLike, *, strict: bool = False, mesh: MeshConfig = _MESH) -> Iterator[dict[str, Any]]:
        """Predictions for a file, in order, as a stream; labels in the file are ignored.

        Args:
          path: the file; ``-`` is standard input for tasks on your own tables.
          strict: whether an empty text of a table is refused; otherwise the fields of its prediction are None.
          mesh: devices along each axis; by default all devices are data-parallel.

        Raises:
          UserError: the file, or a row, cannot be read; predictions for the rows before it have been yielded.
        """
        scorer, task = None, registry.get(self.task)
        for chunk in task.stream(self._source("", strict=strict), path, self.bert.labels, threshold=self.threshold):
            if chunk.examples:
                scorer = scorer or self._scorer(chunk.examples, mesh)
            yield from chunk.results(scorer(chunk.examples) if scorer else [])

    def _source(self, data: str, *, strict: bool = False) -> Source:
        self.bert.config.check_length(self.task_data.sequence_length)
        return Source(data, self.task_data, tokenizer_of(self.bert), self.pairs, strict)

    def _scorer(self, examples: Sequence[Example], mesh: MeshConfig) -> Callable[[Sequence[Example]], Outputs]:
        """A function that computes the outputs of examples with as many texts as these have."""
        model, task = self.bert.config, registry.get(self.task)
        launcher = launchers.for_model(model, mesh, "mesh")
        layout = RowLayout.for_task(
            task,
            self.task_data,
            texts=len(examples[0].texts),
            outputs=task.outputs(self.bert.labels),
            pad=tokenizer_of(self.bert).special_tokens.pad,
            multiple=launcher.shards,
        )
        scorer = Scorer(model, layout, launcher)
        params = jax.device_put(self.bert.params, launcher.shardings(jax.eval_shape(lambda: self.bert.params)))

        def compute(examples: Sequence[Example]) -> Outputs:
            with launcher.context():
                outputs = scorer(params, examples)
            return outputs[0] if outputs else []

        return compute


def run_config(path: epath.PathLike) -> FinetuneConfig | None:
    """The config of the fine-tuning run that a path belongs to; None if it belongs to none.

    Raises:
      UserError: the run is of another format version.
    """
    locate.check_local(path)
    file = _run_of(path) / CONFIG
    if not file.is_file() or "task" not in read_json(file):
        return None
    return FinetuneConfig.from_json(file.read_text())


def _run_of(path: epath.PathLike) -> epath.Path:
    path = epath.Path(path)
    return path.parent if path.name == BEST else path


def _trained_on_pairs(path: epath.PathLike) -> bool | None:
    """Whether the training texts of a run were pairs; older runs do not tell."""
    file = _run_of(path) / summary.FILE
    return bool(read_json(file)["train"]["pairs"]) if file.is_file() else None


def _best_threshold(path: epath.PathLike, task: str) -> float:
    lines = read_metrics(_run_of(path))
    scored = [line for line in lines if _THRESHOLD in line]
    main_score = registry.get(task).main_score
    return float(max(scored, key=lambda line: line[main_score])[_THRESHOLD]) if scored else 0.0
