"""Parses the products of a Google Merchant feed in XML (RSS 2.0 or Atom) with bounded memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.parsers import expat

from training.errors import DatasetError
from training.imports.source_files import LONGEST_RECORD_BYTES

_GOOGLE = "http://base.google.com/ns/1.0"
_ATOM = "http://www.w3.org/2005/Atom"
_PRODUCTS = frozenset({"item", f"{_ATOM} entry"})
_DEEPEST = 64
_ATOM_NAMES = {"summary": "description", "content": "description"}

Product = tuple[int, dict[str, str]]
"""Line number where a product begins, and its attributes by name without prefix."""


class MerchantXml:
    """Parses one feed with expat; depth and size of a product are bounded.

    A document type is refused before it can declare an entity, so no entity expands. Attributes of Google's namespace
    take precedence over elements of RSS or Atom with the same name; of a repeated attribute the first counts; nested
    attributes (shipping, tax) are ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ready: list[Product] = []
        self._open: list[str] = []
        self._depth_of_product = 0
        self._line = 0
        self._fields: dict[str, str] = {}
        self._google: set[str] = set()
        self._text: list[str] = []
        self._size = 0
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype

    def products(self, chunks: Iterable[bytes]) -> Iterator[list[Product]]:
        """Products of each chunk, in order.

        Raises:
            DatasetError: the XML is not well-formed, declares a document type, or exceeds the bounds.
        """
        fed = 0
        try:
            for chunk in chunks:
                fed += len(chunk)
                self._parser.Parse(chunk, False)
                if fed - self._parser.CurrentByteIndex > LONGEST_RECORD_BYTES:
                    raise self._refused(f"an element is larger than {LONGEST_RECORD_BYTES >> 20} MiB")
                ready, self._ready = self._ready, []
                yield ready
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            reason = f"is no well-formed XML ({expat.errors.messages[error.code]})"
            raise DatasetError(
                f"{self._path}: line {error.lineno:,}: {reason}; check that the feed is complete, or export it again"
            ) from error
        except (LookupError, ValueError) as error:
            raise DatasetError(
                f"{self._path}: line 1: the encoding that the feed declares is not known ({error}); export it as UTF-8"
            ) from error
        yield self._ready

    def _refused(self, reason: str) -> DatasetError:
        line = self._parser.CurrentLineNumber
        return DatasetError(f"{self._path}: line {line:,}: {reason}; a product feed needs none of it, export it again")

    def _doctype(self, _name: str, _system: str | None, _public: str | None, _internal: bool) -> None:
        raise self._refused("a document type declaration (<!DOCTYPE …>) is refused, because it can declare entities")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) > _DEEPEST:
            raise self._refused(f"elements are nested deeper than {_DEEPEST}")
        if not self._depth_of_product and name in _PRODUCTS:
            self._depth_of_product = len(self._open)
            self._line = self._parser.CurrentLineNumber
            self._fields, self._google, self._size = {}, set(), 0
        elif self._is_field():
            self._text = []
            if name == f"{_ATOM} link" and attributes.get("rel", "alternate") == "alternate":
                self._text.append(attributes.get("href", ""))

    def _characters(self, text: str) -> None:
        if self._is_field():
            self._size += len(text)
            if self._size > LONGEST_RECORD_BYTES:
                raise self._refused(f"a product is larger than {LONGEST_RECORD_BYTES >> 20} MiB")
            self._text.append(text)

    def _end(self, name: str) -> None:
        if self._is_field():
            self._take(name, "".join(self._text).strip())
        elif len(self._open) == self._depth_of_product:
            self._ready.append((self._line, self._fields))
            self._depth_of_product = 0
        self._open.pop()

    def _is_field(self) -> bool:
        return bool(self._depth_of_product) and len(self._open) == self._depth_of_product + 1

    def _take(self, name: str, value: str) -> None:
        space, _, local = name.rpartition(" ")
        google = space == _GOOGLE
        if space not in ("", _GOOGLE, _ATOM) or not value:
            return
        key = local if google else _ATOM_NAMES.get(local, local)
        if google and key not in self._google:
            self._google.add(key)
            self._fields[key] = value
        elif not google:
            self._fields.setdefault(key, value)
