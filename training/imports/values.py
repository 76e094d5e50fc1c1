"""Parses single values of source files: texts, numbers, prices and HTML."""

import math
import re
from collections.abc import Iterable
from html.parser import HTMLParser

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?")
_PRICE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]{3})")
_UNSHOWN = frozenset({"script", "style", "template", "noscript"})
_BLOCKS = frozenset({"p", "div", "br", "li", "ul", "ol", "tr", "td", "th", "table", "h1", "h2", "h3", "h4", "h5", "h6"})


def text_of(value: object) -> str | None:
    """A value as text without outer white space; None if it is missing, empty, or neither text nor number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def texts_of(value: object) -> list[str]:
    """The texts of a list, or of one text, without empty ones."""
    values = value if isinstance(value, list) else [value]
    return [text for one in values if (text := text_of(one)) is not None]


def number_of(value: object) -> float | None:
    """A finite number, given as number or text (``19.99``); else None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def price_of(value: str | None) -> tuple[float | None, str | None]:
    """Amount and ISO currency of ``19.99 EUR``; both None for anything else."""
    found = _PRICE.fullmatch((value or "").strip())
    return (float(found[1]), found[2]) if found else (None, None)


def joined(parts: Iterable[str | None], *, between: str = "\n") -> str | None:
    """The parts that are not empty, joined; None if all are empty."""
    return between.join(part for part in parts if part) or None


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._hidden += tag in _UNSHOWN
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSHOWN:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _UNSHOWN and self._hidden > 0
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def plain_text(html: str | None) -> str | None:
    """The text of some HTML without tags, scripts and styles, one line per block; None if no text is left."""
    if html is None:
        return None
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line) or None
