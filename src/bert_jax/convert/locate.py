"""The file of weights that a path means, and what is said where there is none."""

from __future__ import annotations

import re
from collections.abc import Iterable

from etils import epath

from bert_jax import tokenizers
from bert_jax.checkpoints import BEST, DIRECTORY
from bert_jax.convert import contents, hf
from bert_jax.errors import UserError
from bert_jax.io import remote
from bert_jax.io.parsing import read_json

GOOGLE_CONFIG = "bert_config.json"
"""Name of the original's config."""
_CONFIGS = (hf.CONFIG, GOOGLE_CONFIG)
_WEIGHTS = tuple(name + suffix for name in (hf.SAFETENSORS, hf.PICKLE, hf.FLAX) for suffix in ("", ".index.json"))
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".index")
# First bytes of PyTorch's files.
_PICKLES = (b"PK", b"\x80")
# Files of training programs that have the suffix of weights.
_NOT_WEIGHTS = re.compile(r"training_args|optimizer|scheduler|rng_state|scaler|adapter_|openvino")
_ADAPTER_CONFIG = "adapter_config.json"
_TRAINER_STEP = re.compile(r"checkpoint-(\d+)")
# Directories below a Lightning run in which it keeps its checkpoints.
_LIGHTNING = ("*.ckpt", "checkpoints/*.ckpt", "version_*/checkpoints/*.ckpt", "lightning_logs/version_*/checkpoints/*.ckpt")
# Directories of sentence-transformers with the weights of further layers.
_MODULE = re.compile(r"\d+_(Dense|LayerNorm)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_ADDRESS = re.compile(r"(https?|hf):/+(www\.)?(huggingface\.co/)?(?P<name>[\w.-]+(/[\w.-]+)?)")


def find(path: epath.PathLike) -> epath.Path:
    """Return the file of weights, or the directory of a run's checkpoints, for a path.

    Raises:
      UserError: there is none, or more than one; the message says what the path is instead, and what to do.
    """
    check_local(path)
    path = remote.open_path(path)
    if not path.exists() and (index := path.parent / f"{path.name}.index").is_file():
        return index
    if path.is_file():
        return _checked(path)
    if path.name == DIRECTORY and _is_run(path.parent):
        return path
    if not path.is_dir():
        raise UserError(f"There is no model {path}; {_what_to_name(str(path))}.")
    if _is_run(path / BEST):
        # The best model of a fine-tuning run, not its last one.
        path = path / BEST
    candidates = _candidates(path)
    if not candidates:
        raise UserError(f"{path} contains no model: {_instead(path)}.")
    if len(candidates) > 1:
        names = " and ".join(file.name for file in candidates)
        raise UserError(f"{path} contains {names}; name the one to read, for example {candidates[0]}.")
    return candidates[0]


def check_local(path: epath.PathLike) -> None:
    """Check that a path is not an address on the web.

    Raises:
      UserError: it is.
    """
    if _ADDRESS.match(str(path)):
        raise UserError(f"There is no model {path}; {_what_to_name(str(path))}.")


def find_config(weights: epath.Path) -> epath.Path:
    """Return the config beside a file of weights, after a look at the files of the tokenizer.

    Raises:
      UserError: there is none, or a file is not what its name says.
    """
    directory = weights.parent
    for name in (*_CONFIGS, *tokenizers.VOCABULARIES, tokenizers.CONFIG):
        if (directory / name).exists():
            contents.check(directory / name)
    for name in _CONFIGS:
        if (directory / name).exists():
            return directory / name
    raise UserError(f"There is no {' or '.join(_CONFIGS)} in {directory}; put the one that belongs to {weights.name} there.")


def _checked(path: epath.Path) -> epath.Path:
    """Return a file that can have weights."""
    contents.check(path)
    if path.name.startswith("adapter_"):
        raise UserError(f"{path} belongs to {_adapter(path.parent)}.")
    prefix, is_tensorflow, _ = path.name.partition(".ckpt.")
    if is_tensorflow and path.suffix != ".index":
        raise UserError(f"{path} is a part of a TensorFlow checkpoint; name the checkpoint, {path.parent / prefix}.ckpt.")
    if kind := contents.kind(path):
        raise UserError(f"{path} {kind}.")
    if path.suffix == ".ckpt" and not path.read_bytes()[:2].startswith(_PICKLES):
        raise UserError(
            f"{path} is a checkpoint of another program than PyTorch; of a TensorFlow checkpoint copy the .index and .data files, "
            "of another one save the weights as model.safetensors."
        )
    if path.suffix not in _SUFFIXES and not path.name.endswith(".index.json"):
        raise UserError(f"{path} is not a checkpoint; name a file with one of the suffixes {', '.join(_SUFFIXES)}.")
    return path


def _candidates(path: epath.Path) -> list[epath.Path]:
    run = [path / DIRECTORY] if _is_run(path) else []
    # A directory of transformers often has the same weights in several containers; the first one counts, as there.
    weights = [path / name for name in _WEIGHTS if (path / name).is_file()][:1]
    return [*run, *weights, *sorted(path.glob("*.ckpt*.index"))]


def _is_run(path: epath.Path) -> bool:
    steps = path / DIRECTORY
    return steps.is_dir() and any(step.name.isdigit() for step in steps.iterdir())


def _what_to_name(path: str) -> str:
    address = _ADDRESS.match(path)
    if not address and (not _HUB_NAME.fullmatch(path) or ("/" in path and epath.Path(path).parent.is_dir())):
        return "give a directory or a file of weights"
    name = address["name"] if address else path
    local = name.rpartition("/")[2]
    return (
        "give a directory or a file of weights; nothing is downloaded here, so for a model of the Hugging Face hub run "
        f"hf download {name} --local-dir {local} and name {local}"
    )


def _instead(path: epath.Path) -> str:
    """Return what a directory without a model contains, and what to do."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    weights = [file for file in files if file.suffix in _SUFFIXES and not _NOT_WEIGHTS.search(file.name)]
    if _ADAPTER_CONFIG in (file.name for file in files):
        return f"it is {_adapter(path)}"
    if any("-of-" in file.name for file in weights):
        return f"{weights[0].name} is a part of one; put the .index.json or .index that belongs to it there"
    if weights:
        return f"name the file of weights to read, for example {weights[-1]}"
    for reason in (_below(path), _other_program(path, files)):
        if reason:
            return reason
    if beside := [file.name for file in files if file.name in (*_CONFIGS, *tokenizers.VOCABULARIES)]:
        return f"it has {' and '.join(beside)} but no weights; put {hf.SAFETENSORS} there"
    expected = f"it has no {DIRECTORY} of a run, no {', '.join(_WEIGHTS[::2])}, and no *.ckpt.index"
    return f"{expected}; name a directory with one"


def _below(path: epath.Path) -> str | None:
    """Return where models are in the directories below, if there are any."""
    steps = [(int(match[1]), step) for step in path.glob("checkpoint-*") if (match := _TRAINER_STEP.fullmatch(step.name))]
    if steps:
        return f"it is the output of a Trainer with {len(steps)} checkpoints; name one, the newest is {max(steps)[1]}"
    lightning = [file for pattern in _LIGHTNING for file in path.glob(pattern)]
    if lightning:
        newest = max(lightning, key=lambda file: file.stat().mtime)
        return f"it is the directory of a Lightning run; name a checkpoint with its config beside it, the newest is {newest}"
    models = _names(
        folder for folder in sorted(path.iterdir()) if folder.is_dir() and not _MODULE.match(folder.name) and _candidates(folder)
    )
    return f"its weights are in a directory below; name {models}" if models else None


def _other_program(path: epath.Path, files: Iterable[epath.Path]) -> str | None:
    """Return what the directory has in the format of another program."""
    if (path / "saved_model.pb").exists():
        return "it is a TensorFlow SavedModel, a compiled graph; use the checkpoint that it was made from, bert_model.ckpt.*"
    parts = [file for file in files if ".ckpt." in file.name]
    if parts:
        return f"{parts[0].name} is a part of a TensorFlow checkpoint, whose .index file is missing; copy it, too"
    below = [*path.glob("onnx/*.onnx")]
    for file in [*files, *below]:
        if kind := contents.kind(file):
            return f"{file.name} {kind}"
    return None


def _adapter(directory: epath.Path) -> str:
    """Return what an adapter is and what to do."""
    path = directory / _ADAPTER_CONFIG
    base = read_json(path).get("base_model_name_or_path") if path.exists() else None
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"a PEFT adapter{of}, which changes another model; load both with peft, call merge_and_unload, and save the merged "
        "model with save_pretrained"
    )


def _names(paths: Iterable[epath.Path]) -> str:
    return " or ".join(map(str, paths))
