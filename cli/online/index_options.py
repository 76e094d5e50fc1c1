"""Defines the options of every command that builds an index and makes the index specification from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.machine.cores import available_cores

if TYPE_CHECKING:
    from index.bundle.index_spec import IndexSpec

_MEGABYTE = 1_000_000

KindOption = Annotated[str, typer.Option(help="Kind of the index: auto, flat, hnsw or ivf.")]
CodesOption = Annotated[
    str, typer.Option(help="How rows are kept in the index: auto, fp32, fp16 or sq8. Scores never depend on it.")
]
MemoryOption = Annotated[
    int | None, typer.Option("--memory-mb", min=1, help="Most megabytes of the index file, for auto to choose by.")
]
TargetRecallOption = Annotated[
    float, typer.Option(help="Recall@20 that search effort is calibrated for; .999 and more is exact where it can.")
]
BoundsOption = Annotated[
    Path | None, typer.Option(help="TOML file with what the bundle is held to; see docs/bundles.md.")
]
BoundOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="One bound, in place of the file's: recall=0.95, coverage=0.2, slot_share.image=0.05, "
        "missing.image=0.1, served_quality=1, text_quality, image_quality, latency_p99_ms, near_duplicates, "
        "disagreement, licence.allowed=apache-2.0,mit; of reindex alone deleted=0.2, lost_events, lost_texts, "
        "lost_pictures, missing_files=0.02, unreadable_files; VALUE none lifts it. May be given several times.",
    ),
]
FreshShareOption = Annotated[
    float,
    typer.Option(
        help="Share of the places of an answer that are kept for new items, which have no training event, 0 … 1; "
        "a request may say otherwise."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Publish even below a bound; the manifest says so.")]
EvaluationOption = Annotated[Path | None, typer.Option(help="JSON of `evaluate`; RUN/evaluation.json if it exists.")]


def index_spec(
    kind: str,
    codes: str,
    memory_mb: int | None,
    target_recall: float,
    bounds: Path | None,
    bound: Sequence[str] | None,
    threads: int | None,
    fresh_share: float,
) -> "IndexSpec":
    """The index specification of the options.

    Args:
        kind: name of the kind of index.
        codes: name of the codes.
        memory_mb: most megabytes of ``index.faiss``; None for no limit.
        target_recall: recall@20 that search effort is calibrated for.
        bounds: TOML file of bounds.
        bound: ``name=value``, in place of the file's.
        threads: threads of the build; None for all cores.
        fresh_share: share of the places of an answer that are kept for new items.

    Raises:
        IndexSpecError: a value breaks a rule.
    """
    from index.bundle.gate import read_bounds
    from index.bundle.index_spec import IndexSpec

    return IndexSpec(
        kind=kind,  # type: ignore[arg-type]  # checked by IndexSpec, with a better message
        codes=codes,  # type: ignore[arg-type]  # checked by IndexSpec
        memory_bytes=None if memory_mb is None else memory_mb * _MEGABYTE,
        target_recall=target_recall,
        bounds=read_bounds(bounds, bound or []),
        threads=threads if threads is not None else available_cores(),
        fresh_share=fresh_share,
    )
