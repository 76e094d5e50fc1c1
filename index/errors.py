"""Everything that `index` raises on purpose, one tree.

IndexingError
├── ItemTableError      an item table, its slots or its probes break a rule
├── ItemListError       item-to-item lists or their weights break a rule
├── IndexSpecError      an index specification asks for something impossible
├── EncoderError        encoder.onnx cannot be loaded or gives non-finite queries
├── SearchError         a query that no index could answer (shape, dtype, non-finite)
├── FilterError         a filter names an unknown field or compares unlike types
├── DiskError           a file cannot be written: the disk is full, read-only or broken, or a limit is reached
├── BundleError         a bundle cannot be used
│   ├── BundleNotFound  there is no bundle at that path or under that id
│   └── BundleInvalid   missing, truncated, altered or mismatched file, unknown format version
└── RegistryError       publishing, listing or moving the pointer failed
    └── GateRefused     a bundle's figures miss its own bounds

Errors of faiss, onnxruntime, pyarrow and the file system are translated into these at the boundary. Every message says
which value broke which rule and what to do about it.
"""

from index.bound_check import BoundCheck


class IndexingError(Exception):
    """Root of the errors of this package."""


class ItemTableError(IndexingError):
    """An item table, its slots or its probes break a rule."""


class ItemListError(IndexingError):
    """Item-to-item lists or their weights break a rule."""


class IndexSpecError(IndexingError):
    """An index specification asks for something impossible."""


class EncoderError(IndexingError):
    """The sequence encoder cannot be loaded, or its answer is unusable."""


class SearchError(IndexingError):
    """A query that no index could answer."""


class FilterError(IndexingError):
    """A filter names an unknown field, or compares a field with a value of another type.

    Attributes:
        field: the metadata field that the clause names.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class DiskError(IndexingError):
    """A file cannot be written: the disk is full, read-only or broken, or a quota, a limit or a permission bars it."""


class BundleError(IndexingError):
    """A bundle cannot be used."""


class BundleNotFound(BundleError):
    """There is no bundle at that path or under that id."""


class BundleInvalid(BundleError):
    """A bundle's file is missing, truncated, altered, or does not fit its manifest."""


class RegistryError(IndexingError):
    """Publishing, listing or moving the pointer failed."""


class GateRefused(RegistryError):
    """A bundle's figures miss its own bounds, so it is not published unless forced.

    Attributes:
        shortfalls: the figures that miss their bound.
    """

    def __init__(self, message: str, *, shortfalls: tuple[BoundCheck, ...]) -> None:
        super().__init__(message)
        self.shortfalls = shortfalls
