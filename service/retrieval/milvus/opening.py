"""Opens the retriever of a Milvus."""

from dataclasses import dataclass

from service.errors import RetrieverUnavailable, StartError
from service.retrieval.guard import Guard
from service.retrieval.milvus.client import MilvusAddress, MilvusClient
from service.retrieval.milvus.milvus_retriever import MilvusRetriever
from service.retrieval.milvus.stored_vectors import CountVectors, StoredVectors


@dataclass(frozen=True, slots=True, eq=False)
class VectorFetching:
    """How vectors of histories and of listed items are fetched.

    Attributes:
        guard: decides whether Milvus is called; not the guard of searches.
        cache_mb: bound of the cache of one bundle in MB, above 0.
        count: called with the number of vectors that were cached, and of those that were fetched.
    """

    guard: Guard
    cache_mb: int
    count: CountVectors = lambda *_: None


def open_milvus(
    address: MilvusAddress, timeout_s: float, guard: Guard, fetching: VectorFetching | None = None
) -> MilvusRetriever:
    """The retriever of a Milvus; it connects at the first call.

    Args:
        address: of Milvus.
        timeout_s: most seconds of a call.
        guard: decides whether a search is made.
        fetching: how vectors are fetched; None: they are read from the files of bundles.

    Raises:
        StartError: pymilvus is not installed.
    """
    try:
        client = MilvusClient(address, timeout_s)
    except RetrieverUnavailable as error:
        raise StartError(str(error)) from error
    stored = None
    if fetching is not None:
        stored = StoredVectors(client, fetching.guard, fetching.cache_mb, fetching.count)
    return MilvusRetriever(client, guard, stored)
