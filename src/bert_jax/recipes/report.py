"""The report of a reproduced table: ours beside the paper's, as Markdown, JSON and a picture."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from bert_jax.io import atomic
from bert_jax.recipes.multibootstrap import Interval, multibootstrap
from bert_jax.recipes.reproduction import Cell, Reproduction
from bert_jax.recipes.tables import Scale, Table

REPORT = "report"
"""Name of the files of the report, without suffix."""
_PACKAGES = ("bert-jax", "jax", "flax", "optax", "numpy")


class Comparison(NamedTuple):
    """A row against the baseline in a column."""

    ours: Interval
    """Difference of the means, paired by seeds, with its interval."""
    paper: float | None
    """Difference of the published values."""

    @property
    def verdict(self) -> str:
        """Whether the order of the two rows is the paper's."""
        if self.paper is None or self.paper == 0:
            return "no order published"
        if not self.ours.excludes(0.0):
            return "not decided"
        return "as in the paper" if (self.ours.mean > 0) == (self.paper > 0) else "opposite to the paper"


def compare(table: Table, cells: list[Cell]) -> dict[tuple[str, str], Comparison]:
    """Every finished cell, except the baseline's own, against the baseline's cell of its column."""
    by_name = {(cell.row, cell.column): cell for cell in cells}
    comparisons = {}
    for (row, title), cell in by_name.items():
        base = by_name.get((table.baseline, title))
        if row == table.baseline or base is None or base.scores.shape != cell.scores.shape:
            continue
        differences = cell.scores - base.scores
        if not np.isfinite(differences).all():
            continue
        published = [_published(table, name, title) for name in (row, table.baseline)]
        paper = None if None in published else round(float(published[0] or 0) - float(published[1] or 0), 4)
        comparisons[row, title] = Comparison(multibootstrap(differences), paper)
    return comparisons


def markdown(table: Table, cells: list[Cell], facts: Mapping[str, Any]) -> str:
    """The report as text.

    Args:
      table: the recipes.
      cells: with the scores of finished runs.
      facts: of [`facts`][bert_jax.recipes.report.facts].
    """
    by_name = {(cell.row, cell.column): cell for cell in cells}
    lines = [f"# {table.title}, {facts['scale']} scale", ""]
    headings = [
        f"{title} | paper" + (f", {column.paper}" if column.paper != title else "") for title, column in table.columns.items()
    ]
    lines += [f"| | {' | '.join(headings)} |", "|---|" + "---|---|" * len(headings)]
    for row in table.rows:
        shown = [_shown(table, row, title, by_name.get((row, title))) for title in table.columns]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    seeds = f"{table.pretraining_seeds} x {table.finetuning_seeds}"
    lines += [
        "",
        f"Mean ± standard deviation of pretraining x fine-tuning seeds ({seeds}), in percent except for perplexities.",
        "",
    ]
    comparisons = compare(table, cells)
    if comparisons:
        lines += [
            f"Differences from {table.baseline}, paired by seeds, with 95 % intervals over both kinds of seeds (multibootstrap):"
        ]
        lines += ["", "| | column | ours | paper | order |", "|---|---|---|---|---|"]
        for (row, title), comparison in comparisons.items():
            paper = "" if comparison.paper is None else f"{comparison.paper:+.4g}"
            lines.append(f"| {row} | {title} | {_signed(comparison.ours)} | {paper} | {comparison.verdict} |")
        lines.append("")
    unfinished = [f"{row}, {title}" for (row, title), cell in by_name.items() if cell.finished < cell.scores.size]
    lines += ["Not finished: " + "; ".join(unfinished) + ".", ""] if unfinished else []
    lines += [f"- Not in this table: {name}: {reason}" for name, reason in table.excluded.items()]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def write(reproduction: Reproduction, facts: Mapping[str, Any]) -> Path:
    """Write ``report.md``, ``report.json`` and ``report.png`` into the directory of the runs; return the first one's path."""
    table, cells = reproduction.table, reproduction.cells()
    directory = epath.Path(reproduction.directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "title": table.title,
        "facts": dict(facts),
        "cells": [
            {
                "row": cell.row,
                "column": cell.column,
                "scores": [[value if np.isfinite(value) else None for value in seeds] for seeds in cell.scores.tolist()],
                "paper": _published(table, cell.row, cell.column),
                "band": _band(table, cell.row, cell.column),
            }
            for cell in cells
        ],
        "differences": [
            {"row": row, "column": title, "verdict": comparison.verdict} | {"paper": comparison.paper} | comparison.ours._asdict()
            for (row, title), comparison in compare(table, cells).items()
        ],
        "excluded": dict(table.excluded),
        "configs": [json.loads(run.config.to_json()) for run in reproduction.runs()],
    }
    text = {"json": json.dumps(content, indent=2) + "\n", "md": markdown(table, cells, facts)}
    for suffix, written in text.items():
        with atomic.replaced_path(directory / f"{REPORT}.{suffix}") as part:
            part.write_text(written)
    with atomic.replaced_path(directory / f"{REPORT}.png") as part:
        picture(table, cells).savefig(part, dpi=150, format="png")
    return reproduction.directory / f"{REPORT}.md"


def picture(table: Table, cells: list[Cell]) -> Figure:
    """Differences from the baseline in every column: ours with intervals, and the paper's."""
    comparisons = compare(table, cells)
    titles = [title for title in table.columns if any(column == title for _, column in comparisons)]
    rows = [row for row in table.rows if row != table.baseline]
    height = 1.2 + 0.42 * len(rows)
    figure = Figure(figsize=(2.6 + 2.6 * max(len(titles), 1), height), layout="constrained")
    if not titles:
        figure.text(0.5, 0.5, "no cell is finished yet", ha="center", va="center")
        return figure
    for index, (axes, title) in enumerate(zip(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0], titles, strict=True)):
        axes.axvline(0, color="0.7", lw=1)
        for place, row in enumerate(rows):
            if (comparison := comparisons.get((row, title))) is None:
                continue
            ours = comparison.ours
            axes.plot([ours.low, ours.high], [place, place], color="C0", lw=2, solid_capstyle="butt")
            axes.plot(ours.mean, place, "o", color="C0", label="ours, 95 %" if place == index == 0 else None)
            if comparison.paper is not None:
                axes.plot(comparison.paper, place + 0.22, "D", color="C1", ms=5, label="paper" if place == index == 0 else None)
        column = table.columns[title]
        name = title if column.paper in (None, title) else f"{title}\n(paper: {column.paper})"
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("perplexity" if column.score == "perplexity" else "points", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(f"Difference from {table.baseline}", fontsize=10)
    return figure


def facts(recipe: Path, scale: Scale, digests: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """What a reader needs to judge a report: the recipe, the machine, the versions, and what the runs read.

    Args:
      recipe: file of the table.
      scale: size of the runs.
      digests: path of each input -> digest of its content.
      seconds: time that this command took.
    """
    device = jax.devices()[0]
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return {
        "scale": scale,
        "recipe": f"{recipe.name}, sha256 {hashlib.sha256(recipe.read_bytes()).hexdigest()[:16]}",
        "inputs": ", ".join(f"{path} ({digest})" for path, digest in digests.items()) or "none",
        "devices": f"{jax.device_count()} x {device.device_kind}" + (f", {_processor()}" if device.platform == "cpu" else ""),
        "versions": f"Python {platform.python_version()}, {packages}",
        "time": f"{seconds / 60:.1f} minutes for the runs that were not finished before",
    }


def _processor() -> str:
    """Name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _published(table: Table, row: str, title: str) -> float | None:
    paper = table.columns[title].paper
    return None if paper is None else table.published.get(row, {}).get(paper)


def _band(table: Table, row: str, title: str) -> tuple[float, float] | None:
    paper = table.columns[title].paper
    return None if paper is None else table.bands.get(row, {}).get(paper)


def _shown(table: Table, row: str, title: str, cell: Cell | None) -> str:
    """Our value and the paper's, as two columns."""
    published, band = _published(table, row, title), _band(table, row, title)
    paper = "" if published is None else f"{published:g}"
    if cell is None or not cell.finished:
        return f" | {paper}"
    values = cell.scores[np.isfinite(cell.scores)]
    ours = f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")
    if band is not None:
        paper += f" ({band[0]:g} to {band[1]:g})"
        ours += ", inside" if band[0] <= values.mean() <= band[1] else ", outside"
    return f"{ours} | {paper}"


def _signed(interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{interval.mean:+.2f}"
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
