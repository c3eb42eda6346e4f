"""What would go wrong with a run, found before it computes anything: a check for each part, each in seconds."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

from bert_jax.cluster.checks import CHECKS, NEED_DATA, Check, Fault, Opened
from bert_jax.config.run import Config
from bert_jax.errors import BertWarning, RunError, UserError
from bert_jax.io.failures import explain
from bert_jax.training import pretraining

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """The result of a check."""

    check: str
    level: Level
    sentence: str
    """What was found and, for a warning or an error, what to do."""
    seconds: float


def examine(config: Config) -> Iterator[Finding]:
    """Check a run, and yield what each check has found; the first error is the one to mend first.

    Several processes call it together, and each yields the findings of all. Later checks need all processes, so that there the
    first error is the last finding.

    Args:
      config: the run, as it would be started.

    Examples:
      >>> config = bert_jax.Config("run", bert_jax.DataConfig("no-such-corpus"))
      >>> [finding.sentence for finding in examine(config) if finding.level == "error"]
      ['no-such-corpus is not a corpus; create one with `bert-jax prepare`.']
    """
    group = pretraining.join(config)
    opened: Opened | None = None
    with contextlib.suppress(UserError):
        opened = Opened(*pretraining.open_run(config)[:2])
    has_data = all(group.gather("opening the data", opened is not None))
    for check in CHECKS:
        if not has_data and check in NEED_DATA:
            continue
        found = _findings(check, opened or Opened(config, None))
        gathered = group.gather(f"the check {found[0].check}", found)
        yield from map(Finding._make, gathered[0])
        known = {finding[2] for finding in gathered[0]}
        for index, findings in enumerate(gathered):
            for finding in map(Finding._make, findings):
                if finding.level != "ok" and finding.sentence not in known:
                    yield finding._replace(sentence=f"{group.describe(index)}: {finding.sentence}")
        if len(group) > 1 and any(finding[1] == "error" for findings in gathered for finding in findings):
            return


def _findings(check: Check, opened: Opened) -> list[Finding]:
    name, began = check.__name__.removeprefix("_").replace("_", " "), time.perf_counter()
    level: Level = "ok"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BertWarning)
        try:
            sentence = check(opened)
        except Fault as fault:
            level, sentence = "warning", str(fault)
        except (UserError, RunError, OSError) as error:
            level, sentence = "error", explain(error)[0] or str(error)
    seconds = time.perf_counter() - began
    warned = [Finding(name, "warning", str(warning.message), 0.0) for warning in caught if warning.category is BertWarning]
    return [*warned, Finding(name, level, sentence, seconds)]


def worst(findings: list[Finding]) -> Level:
    """The worst level of findings."""
    levels = {finding.level for finding in findings}
    return "error" if "error" in levels else "warning" if "warning" in levels else "ok"
