"""The architecture: import order of the packages, and what every module and public name has to have."""

from __future__ import annotations

import ast
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import bert_jax

SOURCE = Path(bert_jax.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# A package imports only itself and those before it.
ORDER = [
    "errors", "batch", "io", "processes", "config", "tokenizers", "sharding", "ops", "models", "masking", "data", "tasks",
    "checkpoints", "convert", "training", "inference", "evaluation", "cluster", "recipes", "cli",
]  # fmt: skip
NO_JAX = {"tokenizers", "data", "tasks"}
MAX_LINES, MAX_FUNCTION_LINES, MAX_STEP_LINES = 320, 60, 40


def relative(path):
    return str(path.relative_to(SOURCE))


def package(path):
    """First name of a module's path: a package, or a single module."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path):
    """Absolute names of the modules and members that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [path for path in FILES if path != SOURCE / "__init__.py"], ids=relative)
def test_imports_follow_the_order(path):
    importer = package(path)
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("experiments", "tests")
        if importer in NO_JAX:
            assert parts[0] not in ("jax", "flax", "jaxlib"), f"{path} imports {name}"
        # The command line comes last, and may also import the public names of bert_jax itself.
        if parts[0] == "bert_jax" and importer != "cli":
            assert len(parts) > 1, f"{path} imports bert_jax itself"
            assert parts[1] in ORDER, f"{path} imports {name}, which is in no package of the order"
            assert ORDER.index(parts[1]) <= ORDER.index(importer), f"{path} imports {name}, which comes later in the order"


def test_every_package_is_in_the_order():
    assert {package(path) for path in FILES} == {*ORDER, "__init__"}


def test_the_tree_in_the_readme_has_the_packages_in_their_order():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    tree = readme.split("src/bert_jax/\n")[1].split("\nexperiments/")[0]
    assert [line.split()[0].removesuffix("/").removesuffix(".py") for line in tree.splitlines()] == ORDER


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_modules_are_documented_and_small(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert path.stem not in ("utils", "helpers", "misc", "common")
    assert text.count("\n") <= MAX_LINES, f"{path} is long; it probably contains two ideas"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node in tree.body:
            assert ast.get_docstring(node) or node.name == "main", f"{path}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name} is long"


def test_lines_of_options_end_where_a_clause_does():
    """``--help`` keeps the line breaks of a field's docstring."""
    for path in [*(SOURCE / "config").rglob("*.py"), *(SOURCE / "cli").rglob("*.py"), SOURCE / "evaluation" / "seeds.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            for field, text in itertools.pairwise(node.body) if isinstance(node, ast.ClassDef) else ():
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    lines = inspect.cleandoc(text.value.value).splitlines()
                    assert all(line.endswith((".", ":", ";")) for line in lines), f"{path}:{text.lineno}"


def test_only_the_launchers_depend_on_pmap():
    """Everything else runs the same under `jax.jit` and `jax.pmap`; the configs only store the choice."""
    for path in FILES:
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        used = any(isinstance(node, ast.Attribute) and node.attr == "pmap" for node in nodes)
        named = any(isinstance(node, ast.Constant) and node.value == "pmap" for node in nodes)
        assert used == (relative(path) == "training/launchers.py"), path
        assert not named or relative(path) == "training/launchers.py" or package(path) == "config", path


def test_the_train_step_is_short():
    source = inspect.getsource(bert_jax.training.step.make_train_step)
    assert len(source[source.index("def train_step") :].splitlines()) <= MAX_STEP_LINES


@pytest.mark.parametrize("name", bert_jax.__all__)
def test_public_names_are_documented_with_an_example(name):
    value = getattr(bert_jax, name)
    documentation = inspect.getdoc(value)
    assert documentation
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    members = [inspect.getdoc(member) or "" for member in vars(value).values()] if inspect.isclass(value) else []
    assert any(">>>" in text for text in (documentation, *members)), f"bert_jax.{name} has no example"


def test_importing_has_no_side_effects():
    """No device is initialised, nothing is printed, and neither TensorFlow nor torch is imported."""
    program = (
        "import sys, bert_jax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "print([name for name in ('tensorflow', 'torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
