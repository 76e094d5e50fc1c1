"""Calls Milvus: the only module that imports pymilvus, and the place where its errors are translated."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import RetrieverUnavailable
from service.retrieval.milvus.collection_record import CURRENT, PREFIX, RECORDS, CollectionRecord
from service.retrieval.milvus.expression import IS_NEW, ROW
from service.retrieval.milvus.scalar_fields import LONGEST_TEXT, MOST_TEXTS, ScalarField

VECTOR: Final = "vector"
DIGEST: Final = "digest"
MOST_ROWS: Final = 16_384
"""Most rows of one answer of Milvus."""
MOST_BYTES: Final = 32 << 20
"""Most bytes of vectors that are asked for in one call; Milvus gives at most 100 MB."""
_T = TypeVar("_T")
_NOT_FOUND: Final = frozenset({100, 1600})  # a collection, an alias; milvus-lite answers 100 for both
_LINKS, _BUILD_EFFORT = 16, 200
_NAME, _RECORD = "bundle", "record"
_STRONG: Final = {"consistency_level": "Strong"}


@dataclass(frozen=True, slots=True)
class MilvusAddress:
    """Where Milvus is.

    Attributes:
        uri: ``http://host:port`` or ``https://host:port``, without a user.
        database: name of a database; empty for the default one.
        token: ``user:password`` or an API key; empty for none. It is in no message.
    """

    uri: str
    database: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"{self.uri}/{self.database}"


@dataclass(frozen=True, slots=True, eq=False)
class FoundRows:
    """What Milvus found for one query.

    Attributes:
        rows: (c,) int64, best first, different.
        vectors: (c, Σd) float32; None if they were not asked for.
    """

    rows: NDArray[np.int64]
    vectors: NDArray[np.float32] | None


class MilvusClient:
    """Calls of one Milvus; connects at the first one. Any number of threads may use it.

    Every method raises RetrieverUnavailable: Milvus did not answer in time, refused the call, or answered nonsense.

    Args:
        address: of Milvus.
        timeout_s: most seconds of a call.

    Raises:
        RetrieverUnavailable: pymilvus is not installed.
    """

    def __init__(self, address: MilvusAddress, timeout_s: float) -> None:
        try:
            import pymilvus
        except ImportError as error:
            raise RetrieverUnavailable("Milvus needs pymilvus; install the extra 'milvus'") from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # every error is raised; its log has whole tracebacks
        self._library: Any = pymilvus
        self._address = address
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._client: Any = None

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def search(
        self,
        collection: str,
        queries: NDArray[np.float32],
        limit: int,
        expression: str,
        ef: int,
        *,
        vectors: bool = True,
    ) -> list[FoundRows]:
        """The rows with the largest inner products that Milvus finds.

        Args:
            collection: its name.
            queries: (B, Σd) float32.
            limit: rows wanted of each, 1 … `MOST_ROWS`.
            expression: that the rows meet; empty for all rows.
            ef: search effort.
            vectors: whether their vectors come with them.
        """
        fields = [VECTOR] if vectors else []
        answer = self._call(
            "search",
            collection_name=collection,
            data=list(queries),
            anns_field=VECTOR,
            filter=expression,
            limit=limit,
            output_fields=fields,
            search_params={"metric_type": "IP", "params": {"ef": max(ef, limit)}},
        )
        return self._checked(partial(_found_rows, answer, queries, vectors))

    def vectors(self, collection: str, rows: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
        """The stored vectors of rows, in one call.

        Args:
            collection: its name.
            rows: (r,) int64, different, 1 … `MOST_ROWS` of them.
            dim: Σd.

        Returns:
            (r, Σd) float32, in the order of the rows.
        """
        answer = self._call("get", collection_name=collection, ids=rows.tolist(), output_fields=[ROW, VECTOR])
        return self._checked(partial(_vectors_of, answer, rows, dim))

    def has(self, collection: str) -> bool:
        """Whether there is a collection, or alias, of this name."""
        return bool(self._call("has_collection", collection_name=collection))

    def is_loaded(self, collection: str) -> bool:
        """Whether a collection can be searched."""
        state = self._call("get_load_state", collection_name=collection)
        return str(state.get("state")).rpartition(".")[2].strip(">").lower().startswith("loaded")

    def collections(self) -> list[str]:
        """The names of the collections of bundles, checked or not."""
        names = self._call("list_collections")
        return sorted(name for name in names if name.startswith(PREFIX) and name != RECORDS)

    def fits(self, collection: str, dim: int, fields: Sequence[ScalarField]) -> bool:
        """Whether a collection is one that :meth:`create` would make, with its index."""
        found = self._call("describe_collection", collection_name=collection)
        kinds = self._library.DataType
        wanted = {ROW: kinds.INT64, VECTOR: kinds.FLOAT_VECTOR, IS_NEW: kinds.BOOL, DIGEST: kinds.INT64}
        wanted |= {field.column: _field_type(kinds, field.kind)["datatype"] for field in fields}

        def same() -> bool:
            types = {field["name"]: field["type"] for field in found["fields"]}
            dims = [int(field["params"]["dim"]) for field in found["fields"] if field["name"] == VECTOR]
            return types == wanted and dims == [dim]

        return self._checked(same) and self.has_index(collection)

    def has_index(self, collection: str) -> bool:
        """Whether a collection has its index, without which it cannot be loaded."""
        return self._index_of(collection) is not None

    def create(self, collection: str, dim: int, fields: Sequence[ScalarField]) -> None:
        """Create an empty collection that can be written to and searched.

        Args:
            collection: its name.
            dim: Σd.
            fields: metadata fields that filters can use.
        """
        library, kinds = self._library, self._library.DataType
        schema = library.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(ROW, kinds.INT64, is_primary=True)
        schema.add_field(VECTOR, kinds.FLOAT_VECTOR, dim=dim)
        schema.add_field(IS_NEW, kinds.BOOL)
        schema.add_field(DIGEST, kinds.INT64)
        for field in fields:
            schema.add_field(field.column, **_field_type(kinds, field.kind))
        index = library.MilvusClient.prepare_index_params()
        building = {"M": _LINKS, "efConstruction": _BUILD_EFFORT}
        index.add_index(VECTOR, index_name=VECTOR, index_type="HNSW", metric_type="IP", params=building)
        self._call("create_collection", collection_name=collection, schema=schema, index_params=index)

    def write(self, collection: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, or replace those of the same number."""
        self._call("upsert", collection_name=collection, data=[dict(row) for row in rows])

    def digests(self, collection: str, start: int, stop: int) -> dict[int, int]:
        """The digest of each row from ``start`` to before ``stop``, at most `MOST_ROWS` of them."""
        found = self._call(
            "query",
            collection_name=collection,
            filter=f"{ROW} >= {start} and {ROW} < {stop}",
            output_fields=[ROW, DIGEST],
            limit=MOST_ROWS,
            **_STRONG,
        )
        return self._checked(lambda: {int(row[ROW]): int(row[DIGEST]) for row in found})

    def count(self, collection: str) -> int:
        """The number of rows, read with all writes so far."""
        found = self._call("query", collection_name=collection, filter="", output_fields=["count(*)"], **_STRONG)
        return self._checked(lambda: int(found[0]["count(*)"]))

    def flush(self, collection: str, wait_s: float) -> None:
        """Write everything to the store of Milvus, so that indexes are built over it.

        Args:
            collection: its name.
            wait_s: most seconds, as pymilvus returns only when all is written.
        """
        self._call("flush", wait_s, collection_name=collection)

    def rows_without_index(self, collection: str) -> int:
        """The number of rows over which the index is not built yet."""
        found = self._index_of(collection) or {}
        if found.get("state") == "Failed":
            raise RetrieverUnavailable(f"Milvus at {self._address!r} could not build the index of {collection}")
        return self._checked(lambda: int(found.get("pending_index_rows", 0)))

    def load(self, collection: str) -> None:
        """Begin to load a collection; :meth:`is_loaded` says when it can be searched."""
        self._call("load_collection", collection_name=collection, _async=True)

    def make_current(self, collection: str) -> None:
        """Let the alias name this collection."""
        call = "alter_alias" if self._current() is not None else "create_alias"
        self._call(call, collection_name=collection, alias=CURRENT)

    def drop(self, collection: str) -> None:
        """Delete a collection, after the alias if that names it: Milvus deletes no collection with an alias."""
        if self._current() == collection:
            self._call("drop_alias", alias=CURRENT)
        self._call("drop_collection", collection_name=collection)

    def record(self, bundle_id: str) -> CollectionRecord | None:
        """The record of a bundle; None: nothing that was checked."""
        return next((record for record in self.records(bundle_id) if record.bundle == bundle_id), None)

    def records(self, bundle_id: str | None = None) -> list[CollectionRecord]:
        """All records, the newest first, or only those of one bundle."""
        if not self.has(RECORDS):
            return []
        wanted = f'{_NAME} == "{bundle_id}"' if bundle_id is not None else f'{_NAME} != ""'
        found = self._call(
            "query", collection_name=RECORDS, filter=wanted, output_fields=[_RECORD], limit=MOST_ROWS, **_STRONG
        )
        records = self._checked(lambda: [CollectionRecord.from_json(row[_RECORD]) for row in found])
        return sorted(records, key=lambda record: record.pushed, reverse=True)

    def open_records(self) -> None:
        """Create the collection of the records, or load it.

        It is not loaded after Milvus was restored from a backup. It lacks its index where a push was killed.
        """
        there, kinds = self.has(RECORDS), self._library.DataType
        if there and self.is_loaded(RECORDS):
            return
        index = self._library.MilvusClient.prepare_index_params()
        index.add_index(VECTOR, index_name=VECTOR, index_type="FLAT", metric_type="IP")
        if there:
            if not self.has_index(RECORDS):
                self._call("create_index", collection_name=RECORDS, index_params=index)
            self._call("load_collection", collection_name=RECORDS)
            return
        schema = self._library.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(_NAME, kinds.VARCHAR, is_primary=True, max_length=255)
        schema.add_field(_RECORD, kinds.VARCHAR, max_length=65_535)
        schema.add_field(VECTOR, kinds.FLOAT_VECTOR, dim=2)  # a collection needs one
        self._call("create_collection", collection_name=RECORDS, schema=schema, index_params=index)

    def keep_record(self, record: CollectionRecord) -> None:
        """Write a record, or replace that of the same bundle, after :meth:`open_records`."""
        self.write(RECORDS, [{_NAME: record.bundle, _RECORD: record.to_json(), VECTOR: [0.0, 0.0]}])

    def drop_record(self, bundle_id: str) -> None:
        """Delete the record of a bundle, so that no replica begins to search its collection."""
        self._call("delete", collection_name=RECORDS, ids=[bundle_id])

    def _current(self) -> str | None:
        try:
            return str(self._call("describe_alias", alias=CURRENT).get("collection_name"))
        except _NotFound:
            return None

    def _index_of(self, collection: str) -> Mapping[str, Any] | None:
        """The index of the vectors; None if there is none."""
        now = int(time.time() * 1000) << 18  # as Milvus counts; else the state leaves out rows younger than the index
        found = self._call("describe_index", collection_name=collection, index_name=VECTOR, timestamp=now)
        return self._checked(lambda: None if found is None else dict(found))

    def _call(self, name: str, timeout_s: float | None = None, /, **arguments: Any) -> Any:  # noqa: ANN401 - no types
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return getattr(self._connected(), name)(**arguments, timeout=timeout_s)
        except RetrieverUnavailable:
            raise
        except self._library.MilvusException as error:
            kind = _NotFound if error.code in _NOT_FOUND else RetrieverUnavailable
            raise kind(f"Milvus at {self._address!r} failed at {name}: {self._shown(error)}") from None
        except Exception as error:  # noqa: BLE001 - grpc's errors, and those of answers that pymilvus cannot read
            raise RetrieverUnavailable(
                f"Milvus at {self._address!r} failed at {name}: {type(error).__name__}: {self._shown(error)}"
            ) from None

    def _connected(self) -> Any:  # noqa: ANN401 - pymilvus has no types
        if not self._lock.acquire(timeout=self._timeout_s):  # while another thread waits for the connection
            raise RetrieverUnavailable(f"Milvus at {self._address!r} cannot be connected to")
        try:
            if self._client is None:
                self._client = self._library.MilvusClient(
                    uri=self._address.uri,
                    token=self._address.token,
                    db_name=self._address.database,
                    timeout=self._timeout_s,
                    dedicated=True,
                )
            return self._client
        finally:
            self._lock.release()

    def _checked(self, read: Callable[[], _T]) -> _T:
        """What ``read`` makes of an answer."""
        try:
            return read()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RetrieverUnavailable(
                f"Milvus at {self._address!r} gave an answer of another form: {self._shown(error)}"
            ) from None

    def _shown(self, error: Exception) -> str:
        """The first line of an error, without the token."""
        details = getattr(error, "details", None)  # of gRPC, whose own text begins with a line that says nothing
        text = str(details() if callable(details) else getattr(error, "message", "") or error)
        text = text.strip().partition("\n")[0][:300]
        token = self._address.token
        for secret in (token, token.partition(":")[2]):
            text = text.replace(secret, "…") if secret else text
        return text


class _NotFound(RetrieverUnavailable):
    """The collection or alias does not exist."""


def _field_type(kinds: Any, kind: str) -> dict[str, Any]:  # noqa: ANN401 - pymilvus has no types
    """The arguments of a nullable field."""
    if kind == "texts":
        element = {"element_type": kinds.VARCHAR, "max_capacity": MOST_TEXTS, "max_length": LONGEST_TEXT}
        return {"datatype": kinds.ARRAY, **element, "nullable": True}
    if kind == "text":
        return {"datatype": kinds.VARCHAR, "max_length": LONGEST_TEXT, "nullable": True}
    types = {"bool": kinds.BOOL, "integer": kinds.INT64, "single": kinds.DOUBLE, "double": kinds.DOUBLE}
    return {"datatype": types[kind], "nullable": True}


def _found_rows(answer: Any, queries: NDArray[np.float32], vectors: bool) -> list[FoundRows]:  # noqa: ANN401
    """The answer of a search; raises ValueError where it does not fit the queries."""
    if len(answer) != len(queries):
        raise ValueError(f"must have {len(queries)} parts, got {len(answer)}")
    found = []
    for hits in answer:
        rows = np.array(hits.ids, dtype=np.int64)
        if np.unique(rows).size != rows.size or (rows < 0).any():
            raise ValueError("must have different rows of at least 0")
        matrix = None
        if vectors:
            matrix = np.array([hit["entity"][VECTOR] for hit in hits], dtype=np.float32).reshape(-1, queries.shape[1])
            if matrix.shape[0] != rows.size or not np.isfinite(matrix).all():
                raise ValueError("must have a finite vector for each row")
        found.append(FoundRows(rows, matrix))
    return found


def _vectors_of(answer: Any, rows: NDArray[np.int64], dim: int) -> NDArray[np.float32]:  # noqa: ANN401
    """The vectors in the order of the rows; raises ValueError where the answer has not exactly those."""
    there = np.array([hit[ROW] for hit in answer], dtype=np.int64)
    order, places = np.argsort(there), np.argsort(rows)
    if not np.array_equal(there[order], rows[places]):
        raise ValueError(f"must have the vectors of {rows.size} rows, got {there.size}; push the bundle again")
    found = np.array([hit[VECTOR] for hit in answer], dtype=np.float32)
    if found.shape != (rows.size, dim) or not np.isfinite(found).all():
        raise ValueError(f"must have finite vectors of {dim} numbers")
    vectors = np.empty_like(found)
    vectors[places] = found[order]
    return vectors
