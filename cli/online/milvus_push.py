"""Puts a bundle into Milvus (`vlm2rec index push`)."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.online.bundles_in_use import in_use_by_services, published_in
from cli.online.published import published_at

if TYPE_CHECKING:
    from service.retrieval.milvus.client import MilvusAddress
    from service.retrieval.milvus.push import Pushed

ShowProgress = Callable[[], AbstractContextManager[Callable[[str, float], None]]]

_CALL_S = 60.0

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

BundleArgument = Annotated[
    str | None, typer.Argument(help="A bundle's directory; with --registry, an id, or a path with a slash.")
]
MilvusOption = Annotated[
    str,
    typer.Option(
        envvar="VLM2REC_RETRIEVER", help="Where Milvus is: milvus+http://host:port/database or milvus+https://…."
    ),
]
PublishedOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        help="Push one published here, the current one if no bundle is given. Older collections are deleted only with "
        "it; those of its current bundle and of the one before are kept.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        envvar="VLM2REC_RETRIEVER_TOKEN_FILE",
        help="File with the token of Milvus, `user:password` or an API key; else VLM2REC_RETRIEVER_TOKEN.",
    ),
]
RecallOption = Annotated[float, typer.Option(min=0, max=1, help="Lowest recall@20 against exact search.")]
SampleOption = Annotated[int, typer.Option(min=1, help="Queries that recall is measured with.")]
KeepOption = Annotated[
    int, typer.Option(min=1, help="Checked collections to keep, the new one included; those in use come on top.")
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait", min=1, help="Most seconds of each wait for Milvus: for a flush, for a load, and for the index."
    ),
]


def push_bundle(
    bundle: str | None,
    registry: str | None,
    milvus: str,
    token_file: Path | None,
    min_recall: float,
    sample: int,
    keep: int,
    wait_s: float,
    progress: ShowProgress,
    *,
    redis: str | None = None,
    spare: Collection[str] = (),
) -> None:
    """Push a bundle and print what was done.

    Raises:
        BundleInvalid, BundleNotFound: the bundle cannot be pushed.
        RegistryError: it cannot be read which bundles are published.
        SettingsError: an address or the token breaks a rule.
        PushRefused: what Milvus holds must not serve.
        RetrieverUnavailable: Milvus does not answer.
    """
    from index.bundle.bundle import Bundle
    from service.errors import OperatorStateUnavailable
    from service.retrieval.milvus.client import MilvusClient
    from service.retrieval.milvus.push import PushOptions, push

    unknown = ["name the registry with --registry to delete what does not"]
    if registry is not None:
        unknown = ["nothing is published in the registry, so nothing is deleted"]

    def in_use() -> frozenset[str] | None:
        published = None if registry is None else published_in(published_at(registry))
        if published is None:
            return None
        try:
            named = in_use_by_services(redis)
        except OperatorStateUnavailable as error:
            unknown[:] = [f"nothing is deleted as long as pins cannot be read: {error}"]
            return None
        unknown.clear()
        return published | named | frozenset(spare)

    address = milvus_address(milvus, token_file)
    in_use()  # a wrong URL ends the command before a push of hours, and not after it
    client = MilvusClient(address, _CALL_S)
    try:
        with progress() as report:
            report("verify", 0.0)
            is_path = bundle is not None and Path(bundle).name != bundle
            loaded = Bundle.load(bundle_directory(bundle, None if is_path else registry), verify="full")
            options = PushOptions(min_recall=min_recall, sample=sample, keep=keep, wait_s=wait_s)
            done = push(loaded, client, options, report, in_use)
        _show(done, unknown)
    finally:
        client.close()


def bundle_directory(bundle: str | None, registry: str | None) -> Path:
    """The directory of a bundle, given as such or by its id in a registry.

    Raises:
        BundleNotFound: nothing is published.
    """
    from index.errors import BundleNotFound

    if registry is None:
        if bundle is None:
            raise typer.BadParameter("give a bundle, or --registry for the current one")
        return Path(bundle)
    published = published_at(registry)
    name = bundle or published.current()
    if name is None:
        raise BundleNotFound(f"{registry}: nothing is published yet; publish one with `vlm2rec index publish`")
    return published.path(name)


def milvus_address(url: str, token_file: Path | None) -> "MilvusAddress":
    """Where Milvus is, with the token of a file or of the variable.

    Raises:
        SettingsError: the URL or the file breaks a rule.
    """
    import os

    from service.errors import SettingsError
    from service.retrieval.milvus.client import MilvusAddress
    from service.settings.retrieval_settings import parse_milvus_url
    from service.settings.secret_files import read_secret

    try:
        parsed = parse_milvus_url(url)
    except ValueError as error:
        raise SettingsError(f"milvus {error}") from None  # without the URL, which may hold a password
    token = os.environ.get("VLM2REC_RETRIEVER_TOKEN", "")
    if token_file is not None:
        token = read_secret(token_file, "token_file").strip()
    return MilvusAddress(parsed.uri, parsed.database, token)


def _show(done: "Pushed", unknown: Sequence[str]) -> None:
    """Print what a push did; ``unknown``: why it could not be read which bundles are in use."""
    record = done.record
    _out.print(
        f"pushed: {record.bundle}, {record.rows} items, {done.written} written; recall@20 {record.recall:.4f}, "
        f"of one slot alone {record.skewed:.4f}, at ef {record.ef}",
        markup=False,
    )
    for bundle_id in done.dropped:
        _out.print(f"deleted: {bundle_id}", markup=False)
    for bundle_id in done.spared:
        _out.print(f"not deleted: {bundle_id}, {'; '.join(['it may serve', *unknown])}", markup=False)
    for name in done.unchecked:
        _err.print(f"not checked: {name}; push its bundle again, or drop it in Milvus", markup=False)
