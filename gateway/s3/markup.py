"""XML as S3 speaks it: text into elements, and a small, bounded tree out of a stranger's bytes.

Owns escaping, the namespace, and what is refused before anybody looks at it: document types, entities,
foreign namespaces, and trees that are too deep. Must never resolve anything outside of the bytes it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from xml.parsers import expat

NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
DEPTH_MAX: Final = 12  # the deepest of S3's documents, a lifecycle rule's filter, has 6

# -- writing ---------------------------------------------------------------------------------------------

# Tab and newline would be legal as they are, but a reader may fold them. Of the others XML 1.0 allows not
# even the reference; S3 writes it all the same, and `encoding-type=url` is there for whoever cannot read
# that.
_SPECIAL = re.compile('[&<>"\x00-\x1f\x7f\ufffe\uffff]')
_NAMED: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def _escaped(match: re.Match[str]) -> str:
    return _NAMED.get(match[0]) or f"&#x{ord(match[0]):X};"


def escape(text: str) -> str:
    return _SPECIAL.sub(_escaped, text)


def element(name: str, text: str | int | bool) -> str:
    """A leaf."""
    if isinstance(text, bool):
        return f"<{name}>{'true' if text else 'false'}</{name}>"
    return f"<{name}>{escape(text) if isinstance(text, str) else text}</{name}>"


def maybe(name: str, text: str | int | bool | None) -> str:
    """A leaf, or nothing for None."""
    return "" if text is None else element(name, text)


def branch(name: str, *parts: str, attributes: str = "") -> str:
    """``parts`` and ``attributes``: markup, escaped already."""
    return f"<{name}{attributes}>{''.join(parts)}</{name}>"


def document(name: str, *parts: str, namespace: str = NAMESPACE) -> bytes:
    attributes = f' xmlns="{namespace}"' if namespace else ""
    # Only an error can repeat bytes that were no UTF-8: they are shown as question marks.
    return (DECLARATION + branch(name, *parts, attributes=attributes)).encode("utf-8", "replace")


# -- reading ---------------------------------------------------------------------------------------------


class Malformed(ValueError):
    """Not well-formed, or not what was expected at this place. The message says which."""


class Node:
    """An element, without its attributes: ``text`` is what stands between its children, whole. The methods
    say what they expect and raise :class:`Malformed`."""

    __slots__ = ("children", "name", "pieces")

    def __init__(self, name: str) -> None:
        self.name = name
        self.children: list[Node] = []
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def expect(self, *names: str) -> None:
        """No other children than these."""
        for child in self.children:
            if child.name not in names:
                raise Malformed(f"{child.name} has no place in {self.name}")

    def every(self, name: str) -> Iterator[Node]:
        return (child for child in self.children if child.name == name)

    def maybe(self, name: str) -> Node | None:
        found = list(self.every(name))
        if len(found) > 1:
            raise Malformed(f"{self.name} has more than one {name}")
        return found[0] if found else None

    def one(self, name: str) -> Node:
        found = self.maybe(name)
        if found is None:
            raise Malformed(f"{self.name} has no {name}")
        return found

    def leaf(self) -> str:
        if self.children:
            raise Malformed(f"{self.name} takes text only")
        return self.text

    def get(self, name: str) -> str | None:
        """The text of a child, if it is there."""
        found = self.maybe(name)
        return None if found is None else found.leaf()

    def word(self, name: str, *choices: str) -> str:
        """A child's text, which is one of ``choices``."""
        value = self.one(name).leaf().strip()
        if value not in choices:
            raise Malformed(f"{name} is one of {', '.join(choices)}")
        return value

    def number(self, name: str, least: int = 0) -> int | None:
        value = self.get(name)
        return None if value is None else integer(name, value, least)


def integer(name: str, text: str, least: int = 0) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text.strip(), re.ASCII) or int(text) < least:
        raise Malformed(f"{name} is a number from {least}")
    return int(text)


class _Builder:
    def __init__(self, nodes_max: int) -> None:
        self.root: Node | None = None
        self._open: list[Node] = []
        self._left = nodes_max

    def start(self, tag: str, _: object) -> None:
        self._left -= 1
        if self._left < 0 or len(self._open) >= DEPTH_MAX:
            raise Malformed("the document has too many elements")
        node = Node(_local(tag))
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node
        self._open.append(node)

    def end(self, tag: str) -> None:
        self._open.pop()

    def data(self, text: str) -> None:
        self._open[-1].pieces.append(text)

    def refuse(self, *_: object) -> None:
        raise Malformed("document types are not accepted")


def _local(tag: str) -> str:
    """Clients send the namespace, or none."""
    namespace, _, name = tag.rpartition(" ")
    if namespace not in ("", NAMESPACE):
        raise Malformed("an element is of a foreign namespace")
    return name


def parse(body: bytes, root: str, *, size_max: int, nodes_max: int) -> Node:
    """The tree of ``body``, whose outermost element must be ``root``. Raises :class:`Malformed`."""
    if len(body) > size_max:
        raise Malformed(f"the document has more than {size_max} bytes")
    builder = _Builder(nodes_max)
    parser = expat.ParserCreate("UTF-8", " ")
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = builder.refuse  # and with it every entity but the five of XML
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise Malformed(f"not well-formed at line {error.lineno}") from None
    if builder.root is None or builder.root.name != root:
        raise Malformed(f"the document is not a {root}")
    return builder.root
