"""The reports of bert-jax inspect as text for a terminal, with coloured masks, or for a file, without colours."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from bert_jax.data.corpus import TRAIN
from bert_jax.data.distribution import PERCENTILES, Distribution
from bert_jax.data.inspection import Frequencies, RowReport
from bert_jax.data.nsp_labels import LabelMeaning
from bert_jax.data.record_inspection import RecordSample
from bert_jax.evaluation.inspection import CorpusReport, RecordsReport, SplitReport
from bert_jax.evaluation.masked_examples import KINDS, Example, Prediction

STYLES = {"masked": "black on bright_red", "random": "black on bright_yellow", "kept": "black on bright_cyan"}
"""Colours of predicted tokens by what replaced them."""
_BAR = 40
_GRID = 4
_LISTED_FILES = 20
_UNITS = ("document", "sentence")
# Columns of examples that are not printed in a terminal.
_WIDTH = 120


def show(report: CorpusReport | RecordsReport, console: Console) -> None:
    """Print a report.

    Args:
      report: the report.
      console: where to; masks are coloured if it is a terminal with colours.
    """
    for line in _corpus(report, console) if isinstance(report, CorpusReport) else _records(report, console):
        print(line)
    _show_examples(report, console)


def _corpus(report: CorpusReport, console: Console) -> Iterator[str]:
    splits, frequencies = report.splits, report.frequencies
    yield f"{report.dataset}: a corpus, {report.tokenizer} vocabulary of {frequencies.vocabulary:,} tokens"
    yield from _section("", _table([["", *splits], *_sizes([*splits.values()])]))
    if any(split.read < split.documents for split in splits.values()):
        read = " and ".join(f"the first {split.read:,} documents of {name}" for name, split in splits.items())
        yield f"Duplicates are those of {read} (--documents)."
    for name, split in splits.items():
        for duplicate in split.commonest_duplicates:
            yield f"{duplicate.copies:,} times in {name}: {_printable(duplicate.beginning)}"
    lengths = {unit: {name: getattr(split, f"tokens_per_{unit}") for name, split in splits.items()} for unit in _UNITS}
    yield from _section("", _lengths([(f"{unit}, {name}", of[name]) for unit, of in lengths.items() for name in of]))
    for unit, of in lengths.items():
        yield from _section(f"tokens per {unit}, {TRAIN}", _histogram(of[TRAIN], console))
    if report.rows:
        yield from _section(_title_of_rows(report.rows, splits[TRAIN]), _rows(report.rows))
    yield from _frequencies(frequencies, f"the {TRAIN} split")
    yield from _unknown(report, sum(split.unknown for split in splits.values()))


def _sizes(splits: Sequence[SplitReport]) -> list[list[str]]:
    rows: list[list[str]] = [
        [name, *(f"{getattr(split, name):,}" for split in splits)] for name in ("documents", "sentences", "words", "tokens")
    ]
    rows.append(["tokens per word", *(f"{split.tokens / max(split.words, 1):.2f}" for split in splits)])
    rows.append(["[UNK]", *(f"{split.unknown:,} ({split.unknown_share:.3%})" for split in splits)])
    rows.append(["duplicates", *(f"{split.duplicates:,} ({split.duplicate_share:.2%})" for split in splits)])
    also = ("-" if split.in_train is None else f"{split.in_train:,} ({split.in_train / split.read:.2%})" for split in splits)
    return [*rows, ["also in train", *also]]


def _title_of_rows(rows: Sequence[RowReport], train: SplitReport) -> str:
    planned = rows[0].documents
    part = f"all {planned:,}" if planned == train.documents else f"{planned:,} of {train.documents:,}"
    return f"rows from {part} documents of train: the first block of an epoch"


def _rows(rows: Sequence[RowReport]) -> list[str]:
    packings = [*rows[0].padding]
    header = ["length", "examples", "random", "cut", "tokens lost"]
    header += [f"padding, {'1' if packing == 1 else f'up to {packing}'} in a row" for packing in packings]
    table = [header]
    for row in rows:
        shares = [row.random, row.cut, row.lost, *(row.padding[packing] for packing in packings)]
        table.append([f"{row.sequence_length:,}", f"{row.examples:,}", *(f"{share:.1%}" for share in shares)])
    return _table(table)


def _records(report: RecordsReport, console: Console) -> Iterator[str]:
    sample = report.sample
    yield (
        f"{report.dataset}: masked sentence{' pairs' if sample.pairs else 's'} in TFRecord files, "
        f"{report.tokenizer} vocabulary of {sample.frequencies.vocabulary:,} tokens"
    )
    yield from _section("", _table([[name, value] for name, value in _record_facts(sample)]))
    part = "every record" if sample.sampled == sample.records else f"{sample.sampled:,} of {sample.records:,} records (--records)"
    yield f"Shares, lengths and tokens are those of {part}."
    yield f"{'All' if sample.verified else 'Their'} checksums are right{'' if sample.verified else '; --verify computes all'}."
    for name in ("flags", "counts") if sample.description else ():
        if isinstance(entries := (sample.description or {}).get(name), dict):
            yield f"{name} of the builder: " + ", ".join(f"{key} {value}" for key, value in entries.items())
    if sample.pairs:
        yield from _section("what the NSP label 1 says of the second segment", _label_meanings(report.label_meanings))
    yield from _section("", _lengths([("record", sample.tokens_per_record)]))
    yield from _section("tokens per record", _histogram(sample.tokens_per_record, console))
    yield from _frequencies(sample.frequencies, "the sample")
    yield from _unknown(report, sample.frequencies.unknown)


def _record_facts(sample: RecordSample) -> Iterator[tuple[str, str]]:
    yield "files", f"{sample.files:,}"
    yield "records", f"{sample.records:,}"
    yield "sequence length", f"{sample.sequence_length:,}"
    yield "padding", f"{sample.padding:.1%}"
    yield "random pairs", f"{sample.random:.1%}" if sample.pairs else "no pairs"
    yield "predictions per record", f"{sample.predictions:.1f} of {sample.slots}"
    for kind, share in sample.kinds.items():
        yield f"  {kind}", f"{share:.1%}"
    yield "[UNK]", f"{sample.frequencies.unknown / max(sample.frequencies.tokens, 1):.3%}"


def _label_meanings(meanings: Sequence[LabelMeaning]) -> list[str]:
    groups = collections.defaultdict(list)
    for meaning in meanings:
        groups[meaning.label_1].append(meaning)
    # The files that differ from most others are those to look at.
    sorted_by_rarity = [meaning for group in sorted(groups.values(), key=len) for meaning in group]
    table = [["file", "label 1", "pairs", "z-score", "pairs needed"]]
    for meaning in sorted_by_rarity[:_LISTED_FILES]:
        needed = f"{'about' if abs(meaning.z) > 1 else 'more than'} {meaning.pairs_needed:,}"
        table.append([meaning.file, meaning.label_1 or "undecided", f"{meaning.pairs:,}", f"{meaning.z:.1f}", needed])
    lines = _table(table, left=2)
    if len(meanings) > _LISTED_FILES:
        counts = ", ".join(f"{label or 'undecided'} {len(group):,}" for label, group in groups.items())
        lines.append(f"{len(meanings) - _LISTED_FILES:,} more files; all together: {counts}.")
    return lines


def _lengths(distributions: Sequence[tuple[str, Distribution]]) -> list[str]:
    table = [["tokens per", "mean", "min", *(f"{percent}%" for percent in PERCENTILES), "max"]]
    for name, distribution in distributions:
        if distribution.total:
            ranks = [distribution.values[0], *map(distribution.percentile, PERCENTILES), distribution.values[-1]]
            table.append([name, f"{distribution.mean():,.1f}", *(f"{value:,}" for value in ranks)])
    return _table(table)


def _histogram(distribution: Distribution, console: Console) -> list[str]:
    bins = distribution.histogram()
    most, character = max((count for *_, count in bins), default=1), "█" if _is_unicode(console) else "#"
    labels = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last, _ in bins]
    rows = [[label, f"{count:,}", f"{count / distribution.total:.1%}"] for label, (*_, count) in zip(labels, bins, strict=True)]
    bars = [character * -(-_BAR * count // most) for *_, count in bins]
    return [f"{line}  {bar}".rstrip() for line, bar in zip(_table(rows, left=0), bars, strict=True)]


def _frequencies(frequencies: Frequencies, where: str) -> Iterator[str]:
    yield from _section(f"most frequent tokens of {where}", _grid(frequencies.most))
    yield from _section("least frequent tokens that occur", _grid(frequencies.least))
    yield f"{frequencies.never:,} of {frequencies.vocabulary:,} tokens never occur, special tokens not counted."


def _unknown(report: CorpusReport | RecordsReport, unknown: int) -> Iterator[str]:
    words = report.unknown_words
    if words is None:
        yield ""
        if unknown:
            yield "[UNK]: the data holds no text; `--text FILE` with the text that it was made from lists the words behind it."
        else:
            yield "There is no [UNK]."
        return
    part = f"{words.documents:,} documents" if words.all_read else f"the first {words.documents:,} documents (--documents)"
    share = words.unknown / max(words.tokens, 1)
    title = f"[UNK] in {part} of the text: {words.unknown:,} of {words.tokens:,} tokens ({share:.3%})"
    if words.words:
        # SentencePiece replaces characters, not the word around them.
        unit = "words" if report.tokenizer == "WordPiece" else "characters or runs of them"
        title += f", {words.distinct:,} different {unit}; the commonest are"
    yield from _section(title, _grid(words.words))
    if words.at_least:
        yield "There are too many different words to count all of them; these are lower bounds."


def _show_examples(report: CorpusReport | RecordsReport, console: Console) -> None:
    if not report.examples:
        return
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    width, arrow = console.width if console.is_terminal else _WIDTH, "→" if _is_unicode(console) else "->"
    print()
    _print(_legend(coloured, arrow), console, coloured)
    for number, example in enumerate(report.examples, 1):
        pair = {True: "random next sentence", False: "next sentence", None: "no pair"}[example.random_next]
        print(f"\n{number}. {len(example.tokens)} tokens, {len(example.predictions)} predictions, {pair}")
        text = example_text(
            example,
            special_tokens=report.special_tokens,
            sentencepiece=report.tokenizer == "SentencePiece",
            coloured=coloured,
            arrow=arrow,
        )
        for line in text.wrap(console, width - 3):
            line.rstrip()
            _print(Text("   ") + line, console, coloured)


def _legend(coloured: bool, arrow: str) -> Text:
    if not coloured:
        return Text(
            f"examples: masked [MASK{arrow}word], random [other{arrow}word], kept [word{arrow}word]; "
            "on the left what the model sees, on the right what it predicts"
        )
    legend = Text("examples: ")
    for kind in KINDS:
        legend.append(f" {kind} ", STYLES[kind]).append(" ")
    return legend.append(f"(for random, what the model sees{arrow}what it predicts)")


def _print(text: Text, console: Console, coloured: bool) -> None:
    """Print one line; through rich only where it has colours, because rich ends the process when a pipe is closed."""
    if coloured:
        console.print(text, soft_wrap=True)
    else:
        print(text.plain)


def example_text(example: Example, *, special_tokens: Sequence[str], sentencepiece: bool, coloured: bool, arrow: str = "→") -> Text:
    """An example with its masks.

    Args:
      example: the example.
      special_tokens: names of tokens that are no text.
      sentencepiece: whether the tokens are those of a SentencePiece model.
      coloured: whether masks are colours; otherwise they are text, such as [MASK→word].
      arrow: what separates the token that the model sees from the one that it predicts.
    """
    predictions = {prediction.position: prediction for prediction in example.predictions}
    text, after_special = Text(), False
    for position, token in enumerate(example.tokens):
        prediction = predictions.get(position)
        original = prediction.label if prediction else token
        special = original in special_tokens
        begins = original.startswith("▁") if sentencepiece else not original.startswith("##")
        if position and (begins or special or after_special):
            text.append(" ")
        after_special = special
        if prediction is None:
            text.append(_bare(token, sentencepiece))
        elif coloured:
            seen = f"{_bare(prediction.input, sentencepiece)}{arrow}" if prediction.kind == "random" else ""
            text.append(f"{seen}{_bare(original, sentencepiece)}", STYLES[prediction.kind])
        else:
            text.append(_marked(prediction, arrow))
    return text


def _marked(prediction: Prediction, arrow: str) -> str:
    seen = "MASK" if prediction.kind == "masked" else _printable(prediction.input)
    return f"[{seen}{arrow}{_printable(prediction.label)}]"


def _bare(token: str, sentencepiece: bool) -> str:
    return _printable(token.removeprefix("▁") if sentencepiece else token.removeprefix("##"))


def _printable(text: str) -> str:
    """The text with characters that would act on a terminal written as escapes."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield ""
    if title:
        yield title
    yield from lines


def _table(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines with aligned columns, the first ``left`` of them to the left."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def padded(index: int, cell: str) -> str:
        space = " " * (widths[index] - cell_len(cell))
        return cell + space if index < left else space + cell

    return ["  ".join(padded(index, cell) for index, cell in enumerate(row)).rstrip() for row in rows]


def _grid(counts: Sequence[tuple[str, int]]) -> list[str]:
    """Counted words in several columns, line after line."""
    cells = [(f"{count:,}", _printable(word)) for word, count in counts]
    number, word = (max(map(cell_len, column)) for column in zip(*cells, strict=True)) if cells else (0, 0)
    texts = [f"{count:>{number}} {name}{' ' * (word - cell_len(name))}" for count, name in cells]
    return ["  ".join(texts[start : start + _GRID]).rstrip() for start in range(0, len(texts), _GRID)]


def _is_unicode(console: Console) -> bool:
    return console.encoding.startswith("utf")
