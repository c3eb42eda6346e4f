"""The house itself: who may import whom, and what every module has to be."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bert_jax

SOURCE = Path(bert_jax.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# Bottom to top: a module imports only what stands before it.
ORDER = [
    "errors", "files", "schema", "schedules", "policy", "config", "sharding", "ops", "positions", "attention", "model",
    "readout", "heads", "weights", "selection", "masking", "losses", "optim", "step", "parallel", "members", "tokenizers", "data",
    "checkpoint", "convert", "windows", "log", "plot", "loop", "train", "outputs", "bert", "rates", "sweeps", "metrics",
    "tasks", "minimal_pairs", "ask", "finetuning", "stability", "bench", "cli",
]  # fmt: skip
NO_JAX = {"tokenizers", "data", "metrics", "tasks"}


def room(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path):
    """Absolute names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path != SOURCE / "__init__.py"], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_imports_point_downwards(path):
    mine = room(path)
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "experiments"
        if parts[0] == "bert_jax" and len(parts) > 1 and mine != "cli":
            theirs = parts[1]
            assert theirs in ORDER, f"{path} imports {name}"
            assert theirs == mine or ORDER.index(theirs) < ORDER.index(mine), f"{path} imports {name}, which stands above it"
        if mine in NO_JAX:
            assert parts[0] not in ("jax", "flax", "jaxlib"), f"{path} imports {name}"


def test_every_room_is_in_the_order():
    assert {room(path) for path in FILES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_are_documented_and_small(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert path.stem not in ("utils", "helpers", "misc", "common")
    assert text.count("\n") <= 340, f"{path} holds two ideas"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node in tree.body:
            assert ast.get_docstring(node) or node.name == "main", f"{path}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is long"


def test_the_step_is_at_most_forty_lines():
    source = inspect.getsource(bert_jax.training.step.make_train_step)
    assert len(source[source.index("def train_step") :].splitlines()) <= 40


def test_public_names_exist_and_are_documented():
    for name in bert_jax.__all__:
        assert inspect.getdoc(getattr(bert_jax, name)), name


def test_importing_has_no_side_effects():
    """No device is initialised, nothing is printed, and neither TensorFlow nor torch is pulled in."""
    program = (
        "import sys, bert_jax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "print([name for name in ('tensorflow', 'torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
