"""The examples in docstrings run and print what they show."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import pkgutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax

pytestmark = pytest.mark.usefixtures("unoptimized")

NAMESPACE = {"bert_jax": bert_jax, "jax": jax, "jnp": jnp, "np": np}
MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(bert_jax.__path__, "bert_jax.")
    if not module.name.endswith("__main__")
]
EXAMPLES = [
    test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if test.examples and test.name.startswith("bert_jax.")
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example, tmp_path, monkeypatch):
    # `tempfile` reads TMPDIR only once.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    example.globs = {**vars(importlib.import_module(_module(example.name))), **NAMESPACE}
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(example).failed
    assert not failed, report.getvalue()


def test_examples_are_found_everywhere():
    """The finder skips what it does not recognize without a word."""
    names = {example.name for example in EXAMPLES}
    assert {"bert_jax.inference.bert.Bert", "bert_jax.training.pretraining.pretrain", "bert_jax.tasks.registry.get"} <= names


def _module(name):
    return max((module.__name__ for module in MODULES if f"{name}.".startswith(f"{module.__name__}.")), key=len)
