"""Opens the retriever of a Milvus."""

from service.errors import RetrieverUnavailable, StartError
from service.retrieval.guard import Breaker, Guard, Observe
from service.retrieval.milvus.client import MilvusAddress, MilvusClient
from service.retrieval.milvus.milvus_retriever import MilvusRetriever


def open_milvus(
    address: MilvusAddress, timeout_s: float, breaker: Breaker, observe: Observe = lambda *_: None
) -> MilvusRetriever:
    """The retriever of a Milvus; it connects at the first call.

    Args:
        address: of Milvus.
        timeout_s: most seconds of a call.
        breaker: of its own.
        observe: called after every search with its seconds and whether it was answered.

    Raises:
        StartError: pymilvus is not installed.
    """
    try:
        client = MilvusClient(address, timeout_s)
    except RetrieverUnavailable as error:
        raise StartError(str(error)) from error
    return MilvusRetriever(client, Guard(breaker, observe))
