"""An i-PI input as a tree that knows where in the text each of its elements stands.

An edit is found in the tree and made in the text, so that every character that was not edited stays as its author wrote it:
comments, blanks, quotes. No units: this module knows XML and nothing of physics.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast
from xml.parsers import expat
from xml.sax.saxutils import escape

_START_TAG = re.compile(r"""<[^\s/>]+(?:\s+[^\s=>]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")
_QUOTES = {'"': "&quot;", "'": "&apos;"}


class InputError(ValueError):
    """An input, or an edit of one, cannot be what was asked for."""


class Element(ET.Element):
    """An XML element that remembers its place in the text."""

    line: int = 0  # of its start tag, counted from 1
    start_tag: tuple[int, int] = (0, 0)  # characters, [begin, end)
    content: tuple[int, int] = (0, 0)  # characters between the tags, [begin, end)


@dataclass(frozen=True)
class Document:
    """The text of an XML file and its tree."""

    text: str
    root: Element


@dataclass(frozen=True)
class Replacement:
    """Characters [begin, end) of a text give way to others."""

    begin: int
    end: int
    new: str


def parse(text: str) -> Document:
    """Read an XML input.

    Raises:
        InputError: the text is not well-formed XML; the message names line and column.
    """
    data = text.encode()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    builder = ET.TreeBuilder(element_factory=Element)
    opened: list[Element] = []

    def position() -> int:
        return len(data[: parser.CurrentByteIndex].decode())

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = cast(Element, builder.start(tag, attributes))
        begin = position()
        match = _START_TAG.match(text, begin)
        end = match.end() if match else begin
        element.line, element.start_tag, element.content = parser.CurrentLineNumber, (begin, end), (end, end)
        opened.append(element)

    def end(tag: str) -> None:
        element = opened.pop()
        element.content = (element.content[0], max(element.content[0], position()))
        builder.end(tag)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(
            f"not well-formed XML at line {error.lineno}, column {error.offset}: "
            f"{expat.ErrorString(error.code)}; wanted one <simulation> element with matching tags"
        ) from None
    return Document(text, cast(Element, builder.close()))


def find_all(parent: ET.Element, tag: str) -> Iterator[Element]:
    """Every element with this tag, below a parent, at any depth."""
    return (node for node in parent.iter(tag) if isinstance(node, Element))


def children(parent: ET.Element | None, tag: str | None = None) -> Iterator[Element]:
    """The elements directly below a parent, all or those with a tag; none where there is no parent."""
    nodes = () if parent is None else parent
    return (node for node in nodes if isinstance(node, Element) and tag in (None, node.tag))


def find(parent: ET.Element | None, path: str) -> Element | None:
    """The first element at a path below a parent, or None."""
    node = parent.find(path) if parent is not None else None
    return node if isinstance(node, Element) else None


def value_of(element: ET.Element | None) -> str:
    """The text of an element without the blanks around it; "" where there is no element."""
    return (element.text or "").strip() if element is not None else ""


def replace_value(document: Document, element: Element, new: str) -> Replacement:
    """The edit that exchanges the text of an element and leaves the blanks around it alone."""
    begin, end = element.content
    raw = document.text[begin:end]
    if not raw.strip():
        return Replacement(begin, end, f" {escape(new)} ")
    return Replacement(begin + len(raw) - len(raw.lstrip()), end - len(raw) + len(raw.rstrip()), escape(new))


def replace_attribute(document: Document, element: Element, name: str, new: str) -> Replacement:
    """The edit that exchanges the value of an attribute, or adds the attribute where it is missing."""
    begin, end = element.start_tag
    tag = document.text[begin:end]
    new = escape(new, _QUOTES)
    match = re.search(rf"""\s{re.escape(name)}\s*=\s*(["'])(.*?)\1""", tag)
    if match:
        return Replacement(begin + match.start(2), begin + match.end(2), new)
    place = begin + len(tag.rstrip("/>").rstrip())
    return Replacement(place, place, f' {name}="{new}"')


def apply(document: Document, replacements: list[Replacement]) -> str:
    """The text after a set of edits that do not overlap."""
    text = document.text
    for edit in sorted(replacements, key=lambda edit: edit.begin, reverse=True):
        text = text[: edit.begin] + edit.new + text[edit.end :]
    return text
