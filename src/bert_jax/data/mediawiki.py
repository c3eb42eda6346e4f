"""Articles of a MediaWiki dump as plain text, by mwxml and mwparserfromhell (the extra ``wiki``)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io.lines import open_bytes

# Elements whose content is no running text.
_TAGS = {"ref", "table", "gallery", "math", "timeline", "score", "syntaxhighlight", "source", "code", "pre", "imagemap", "chem"}


class Pages:
    """The markup of each article of a dump (namespace 0, newest revision, no redirects), in order.

    Args:
      path: ``pages-articles.xml``, which may be compressed.
      opened: see [`open_bytes`][bert_jax.io.lines.open_bytes].
    """

    def __init__(self, path: epath.Path, opened: Callable[[Any], Any] = lambda file: file) -> None:
        self._path, self._opened, self._library = path, opened, _load("mwxml")

    def __iter__(self) -> Iterator[str]:
        with open_bytes(self._path, opened=self._opened) as file:
            try:
                for page in self._library.Dump.from_file(file):
                    if page.namespace == 0 and not page.redirect:
                        text = ""
                        for revision in page:
                            text = revision.text or ""
                        yield text
            except (UserError, OSError, EOFError):
                raise
            except Exception as error:  # the library has errors of its own and of the XML parser
                reason = (str(error).splitlines() or ["its root element has another name"])[0]
                raise UserError(f"{self._path} is not a dump of MediaWiki: {reason}.") from None


def plain_text(markup: str) -> str:
    """The paragraphs of an article without templates, tables, references, files, categories and headings."""
    library = _load("mwparserfromhell")
    code = library.parse(markup)
    for node in [*code.ifilter_templates(recursive=False), *code.ifilter_headings(recursive=False)]:
        _remove(code, node)
    for tag in code.ifilter_tags(recursive=False):
        if str(tag.tag).strip().lower() in _TAGS:
            _remove(code, tag)
    for link in code.ifilter_wikilinks(recursive=False):
        # Of another namespace, such as a file or a category.
        if ":" in str(link.title).strip().lstrip(":"):
            _remove(code, link)
    text: str = code.strip_code(normalize=True, collapse=True)
    return "\n".join(line.lstrip("*#:; ") for line in text.split("\n"))


def _remove(code: Any, node: Any) -> None:
    try:
        code.remove(node)
    except ValueError:
        # It was part of a node that is gone already.
        return


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"Dumps of MediaWiki are read by {name}; install it with `pip install 'bert-jax[wiki]'`.") from None
