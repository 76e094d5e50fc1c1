"""Defines every error that `index` raises on purpose, as one tree.

IndexingError
├── ItemTableError      an item table, its slots or its evaluation queries break a rule
├── ItemListError       item-to-item lists or their weights break a rule
├── IndexSpecError      an index specification asks for something impossible
├── EventTypesError     the table of event types breaks a rule
├── EncoderError        encoder.onnx cannot be loaded or gives an invalid query
├── SearchError         a query is invalid (shape, dtype, non-finite), or the search failed
├── FilterError         a filter names an unknown field or compares unlike types
├── DiskError           a file cannot be written: the disk is full, read-only or broken, or a limit is reached
├── EventExportError    an export of events is missing, damaged, or belongs to other events
│   ├── ExportBusy      another exporter is at work on it
│   └── ExportUnavailable  its object store does not answer, or refuses
├── BundleError         a bundle cannot be used
│   ├── BundleNotFound  there is no bundle at that path or under that id
│   └── BundleInvalid   missing, truncated, altered or mismatched file, unknown format version
└── RegistryError       publishing, listing or moving the pointer failed
    ├── GateRefused     a bundle's figures miss its own bounds
    └── StoreUnavailable  an object store does not answer, or sends something else than was asked for

Errors of faiss, onnxruntime, pyarrow and the file system are translated into these at the boundary. Every message names
the rule, the value that broke it and the remedy.
"""

import errno
from collections.abc import Collection
from typing import Final

from index.bound_check import BoundCheck

_LACKS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_UNREACHABLE: Final = frozenset(
    {
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.EREMOTEIO),
    }
)


class IndexingError(Exception):
    """Base class of the errors of this package."""


class ItemTableError(IndexingError):
    """An item table, its slots or its evaluation queries break a rule."""


class ItemListError(IndexingError):
    """Item-to-item lists or their weights break a rule."""


class IndexSpecError(IndexingError):
    """An index specification asks for something impossible."""


class EventTypesError(IndexingError):
    """The table of event types breaks a rule."""


class EncoderError(IndexingError):
    """The sequence encoder cannot be loaded, or its output is invalid."""


class SearchError(IndexingError):
    """A query is invalid (shape, dtype, non-finite value), or the search failed."""


class FilterError(IndexingError):
    """A filter names an unknown field, or compares a field with a value of another type.

    Attributes:
        field: the metadata field that the clause names.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class DiskError(IndexingError):
    """A file cannot be written: the disk is full, read-only or broken, or a limit or permission forbids it."""


class EventExportError(IndexingError):
    """An export of events is missing, damaged, or belongs to other events."""


class ExportBusy(EventExportError):
    """Another exporter is at work on the export."""


class ExportUnavailable(EventExportError):
    """The object store of an export does not answer, or refuses; whether a file was written is unknown."""


class BundleError(IndexingError):
    """A bundle cannot be used."""


class BundleNotFound(BundleError):
    """There is no bundle at that path or under that id."""


class BundleInvalid(BundleError):
    """A bundle's file is missing, truncated, altered, or does not fit its manifest."""


class RegistryError(IndexingError):
    """Publishing, listing or moving the pointer failed."""


class GateRefused(RegistryError):
    """A bundle's figures miss its own bounds; it is published only if forced.

    Attributes:
        shortfalls: the figures that miss their bound.
    """

    def __init__(self, message: str, *, shortfalls: tuple[BoundCheck, ...]) -> None:
        super().__init__(message)
        self.shortfalls = shortfalls


class StoreUnavailable(RegistryError):
    """An object store does not answer, refuses, or sends something else than was asked for; a later try may succeed."""


def lacks_resources(error: BaseException | None) -> bool:
    """Whether an error, or one that it was translated from, is the system's lack of memory or of file descriptors.

    Such an error says nothing of the file that could not be opened. A MemoryError of Python is none, as damaged sizes
    raise it too.
    """
    return _has_code(error, _LACKS)


def may_pass(error: BaseException | None) -> bool:
    """As :func:`lacks_resources`, and for a mount whose server does not answer: such errors say nothing of a file."""
    return _has_code(error, _LACKS | _UNREACHABLE)


def reading_failed(error: BaseException | None) -> bool:
    """Whether an error, or one that it was translated from, is of a mount without its server or of a broken disk."""
    return _has_code(error, _UNREACHABLE | {errno.EIO})


def _has_code(error: BaseException | None, codes: Collection[int]) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in codes:
            return True
        error = error.__cause__
    return False
