"""Runs the nightly job: embeds the changes of a run's catalogue, builds a bundle and publishes it.

Each step leaves a complete result that records its inputs, and the next step starts from it: shards and embeddings
(`training.embedding.job`), the item table (`training.nightly.item_updates`), the built bundle (``RUN/reindex/built``),
the published bundle. So the next job resumes a killed one, even if the inputs changed in between, and a job whose
inputs are those of the published bundle has nothing to do.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError

from index.build.build import build_bundle
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import BUNDLE_FORMAT, BUNDLE_FORMAT_WITH_LISTS
from index.bundle.registries import AnyRegistry
from index.errors import BundleError, GateRefused, RegistryError
from index.items.item_table import ItemTable
from index.items.thumbnails import THUMBNAILS_FILE
from index.machine.disk import RESUME_HINT, describe_disk_error
from training.backbones.identity import LICENCES
from training.backbones.trained_model import TrainedModel
from training.data.dataset import Dataset
from training.data.thumbnails import MARK, VERSION, make_thumbnails
from training.embedding.content_hashes import Delta, metadata_digest
from training.embedding.job import Embedded, EncodeShards, Pending, Progress, embed_catalogue, pending_items
from training.embedding.plan import work_done
from training.embedding.store import Embeddings
from training.encoder.loaded import FittedEncoder
from training.errors import JobStopped, ReindexError
from training.nightly.item_updates import (
    INPUTS,
    KeptTable,
    inputs_of,
    keep_table,
    remap_queries,
    remove_tables,
    updated_table,
)
from training.nightly.list_updates import current_lists, remove_lists
from training.nightly.record import ReindexRecord, ReindexState, digest_of
from training.nightly.volume_bounds import (
    EVENTS,
    VOLUME,
    Loss,
    Predecessor,
    VolumeBounds,
    events_of,
    losses_after,
    losses_before,
    refuse_losses,
)

REINDEX_DIRECTORY = "reindex"
_BUILT = "built"
_SHARES = 1_000
_OF_THE_INDEX = ("index", "evaluation", "format")


@dataclass(frozen=True)
class ReindexJob:
    """The inputs and options of a re-index job.

    Attributes:
        run: the run directory, with a trained model and a fitted encoder.
        dataset: the current catalogue and interactions.
        registry: the registry to publish to.
        spec: of the index.
        evaluation: JSON-able figures of the model for the report.
        keep: number of the latest published bundles that stay in the registry; None deletes none.
        force: publish although a bound is missed.
        trust_times: assume that a picture of the same path, size and modification time is unchanged.
        spare: called before old bundles are deleted; ids of those that stay, such as pinned ones. None: they cannot be
            read, and nothing is deleted.
        volume: bounds on the losses of the data set since the current bundle.
        encode_shards: makes missing shards instead of this process.
    """

    run: Path
    dataset: Dataset
    registry: AnyRegistry
    spec: IndexSpec
    evaluation: Mapping[str, Any] | None = None
    keep: int | None = None
    force: bool = False
    trust_times: bool = False
    spare: Callable[[], Collection[str] | None] = frozenset
    volume: VolumeBounds = field(default_factory=VolumeBounds)
    encode_shards: EncodeShards | None = None

    @property
    def directory(self) -> Path:
        """``RUN/reindex``."""
        return self.run / REINDEX_DIRECTORY


@dataclass(frozen=True)
class Findings:
    """The work that a job has to do.

    Attributes:
        fitted: the encoder of the run.
        model: its vision-language model.
        pending: the items to embed.
        kept: the table with the rows to keep.
        delta: the difference between the catalogue and that table.
        counts: (n,) int64 training events per item.
        before: the bundle that the data set is compared with; None if there is none or nothing to do.
        losses: losses of the data set since then.
        inputs: fingerprints of everything that the bundle depends on, by name.
        bundle: a published, intact bundle of the same inputs; then there is nothing to do.
        why: reasons for a new bundle, or remarks.
    """

    fitted: FittedEncoder
    model: TrainedModel
    pending: Pending
    kept: KeptTable
    delta: Delta
    counts: NDArray[np.int64]
    before: Predecessor | None
    losses: tuple[Loss, ...]
    inputs: dict[str, str]
    bundle: str | None
    why: tuple[str, ...]

    @property
    def to_embed(self) -> int:
        """Number of items to embed."""
        return int(self.pending.wanted.sum()) if self.bundle is None else 0

    def check_volume(self, job: ReindexJob) -> None:
        """Check the losses of the data set against their bounds, unless the job is forced.

        Raises:
            GateRefused: a loss exceeds its bound.
        """
        if not job.force:
            refuse_losses(job.dataset.name(), self.losses, "Nothing was embedded or published")

    def embedded_before(self) -> int:
        """Number of these items that an interrupted job has embedded."""
        if not self.to_embed:
            return 0
        return work_done(self.model.embeddings, self.pending.wanted_contents(), self.model.provenance)


def find_changes(job: ReindexJob, progress: Progress = lambda _step, _done, _all: None) -> Findings:
    """Determine the work to do; reads only and loads no model.

    Raises:
        ReindexError: the run cannot be indexed again.
        TrainingError, IndexingError: a part of the run or of the registry cannot be read.
    """
    fitted = FittedEncoder.load(job.run)
    model = TrainedModel.of(job.run)
    fitted.check_model(model.provenance)
    pending = pending_items(
        job.dataset, model.provenance, model.embeddings, trust_times=job.trust_times, progress=progress
    )
    kept = KeptTable.newest(job.directory, fitted, model.provenance)
    counts = fitted.counts(job.dataset)
    inputs = {
        "items": pending.contents.ordered_digest(),
        "metadata": metadata_digest(job.dataset.metadata()),
        "popularity": hashlib.sha256(counts.tobytes()).hexdigest()[:16],
        "encoder": fitted.mark,
        "model": digest_of({name: part for name, part in model.provenance.items() if name not in {"inputs", LICENCES}}),
        "index": digest_of(dataclasses.replace(job.spec, threads=1)),  # threads affect the duration only
        "evaluation": digest_of(job.evaluation),
        "format": str(BUNDLE_FORMAT if fitted.lists is None else BUNDLE_FORMAT_WITH_LISTS),
        MARK: VERSION,
    }
    if job.dataset.event_types is not None:
        inputs["event_types"] = digest_of(job.dataset.event_types.model_dump(mode="json"))
    bundle, why = _published(job, inputs)
    delta = kept.delta(pending.contents)
    before = Predecessor.find(job.registry, kept.table, kept.number) if bundle is None else None
    losses: tuple[Loss, ...] = ()
    if before is not None:
        losses = losses_before(before, pending.contents, events_of(job.dataset), int(counts.sum()), job.volume)
    return Findings(fitted, model, pending, kept, delta, counts, before, losses, inputs, bundle, why)


def run_reindex(
    job: ReindexJob,
    findings: Findings,
    record: ReindexRecord,
    *,
    progress: Progress = lambda _step, _done, _all: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Embed, make the item table, build, publish and clean up.

    Args:
        job: the job.
        findings: result of :func:`find_changes` under the same lock of the run.
        record: filled during the work, so that it also describes a failed job.
        progress: called with the progress of each step.
        stopped: called between and within steps, but not while a shard is embedded; true stops the job.

    Raises:
        GateRefused: too much of the data set is lost, or the bundle misses a bound of its specification; nothing is
            published.
        JobStopped: ``stopped`` returned true.
        ReindexError: a file cannot be written.
        TrainingError, IndexingError: a part is damaged, or cannot be embedded or built.
    """
    state = ReindexState(job.directory)
    findings.check_volume(job)
    try:
        if findings.bundle is None:
            _publish(job, findings, record, progress, stopped)
            state.published(record.bundle, findings.inputs)
            record.outcome = "published"
        else:
            record.bundle = findings.bundle
            _clean_up(job, findings)
            state.succeeded()
            record.outcome = "nothing to do"
        shutil.rmtree(job.directory / _BUILT, ignore_errors=True)
        (job.directory / THUMBNAILS_FILE).unlink(missing_ok=True)  # the table has a copy
        state.clear_away()
        spare = None if job.keep is None else job.spare()
        if job.keep is not None and spare is not None:
            record.pruned = job.registry.prune(job.keep, spare=spare)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError, SafetensorError) as error:
        raise ReindexError(describe_disk_error(error, job.run, RESUME_HINT)) from error


def _publish(
    job: ReindexJob,
    findings: Findings,
    record: ReindexRecord,
    progress: Progress,
    stopped: Callable[[], bool],
) -> None:
    """Run all steps from the shards to the pointer."""
    done = _embedded(job, findings, progress, stopped)
    record.encoded, record.resumed = done.encoded, done.resumed
    record.unreadable = dict(done.embeddings.unreadable)
    if findings.before is not None:
        broken = losses_after(findings.before, findings.pending.contents, record.unreadable, job.volume)
        record.losses = [*findings.losses, *broken]
        if not job.force:
            refuse_losses(job.dataset.name(), broken, "Nothing was published, and the vectors of before are kept")

    def report(step: str, done: int, every: int) -> None:
        progress(step, done, every)
        if stopped():
            raise JobStopped(f"stopped while {step}; start the same command again to go on")

    table = _table(job, findings, report)
    built = _built(job, findings, table, report)
    record.bundle = built.name
    try:
        job.registry.publish(
            built, force=job.force, progress=lambda _name, share: report("verify", round(share * _SHARES), _SHARES)
        )
    except GateRefused:
        record.outcome, record.built = "refused", str(built)
        raise


def _embedded(
    job: ReindexJob,
    findings: Findings,
    progress: Progress = lambda _step, _done, _every: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Embedded:
    """Embed what is wanted, if anything is, and clean up after an earlier job."""
    config = findings.model.config.embed
    return embed_catalogue(
        job.dataset,
        findings.pending,
        findings.model.load,
        findings.model.embeddings,
        shard_items=config.shard_items,
        batch_items=config.batch_items,
        progress=progress,
        stopped=stopped,
        encode_shards=job.encode_shards,
    )


def _clean_up(job: ReindexJob, findings: Findings) -> None:
    """Clean up after a job that was killed before its last step."""
    if not findings.pending.wanted.any():
        _embedded(job, findings)
    if findings.kept.number:
        remove_tables(job.directory, keep=findings.kept.number)
    remove_lists(job.directory, keep=_mark_of_lists(findings))


def _published(job: ReindexJob, inputs: Mapping[str, str]) -> tuple[str | None, tuple[str, ...]]:
    """A published, intact bundle of these inputs, if there is one, and remarks."""
    current = job.registry.current()
    if current is None:
        return None, ("nothing is published yet",)
    try:
        found = inputs_of(job.registry.path(current))
    except BundleError as error:
        return None, (f"the current bundle is damaged: {error}",)
    if found == inputs:
        return current, ()
    # An operator who moved the pointer back had a reason, so the same content is not published again.
    state = ReindexState(job.directory).read()
    mine = state.get("published")
    if isinstance(mine, str) and mine != current and state.get("inputs") == inputs:
        try:
            if inputs_of(job.registry.path(mine)) == inputs:
                moved = f"the pointer was moved from {mine}, which has these inputs, to {current}; it is left there"
                return mine, (moved,)
        except (BundleError, RegistryError):
            pass  # it is missing or damaged, so it is built again
    if found is None:
        return None, (f"the current bundle {current} was not made by reindex",)
    return None, tuple(f"{name} changed" for name in inputs if found.get(name) != inputs[name])


def _table(job: ReindexJob, findings: Findings, report: Progress) -> ItemTable:
    """The item table of these inputs; made and stored if needed."""
    provenance = {
        "embeddings": findings.model.provenance | {"inputs": findings.pending.contents.digest()},
        "encoder": findings.fitted.hashes,
        INPUTS: findings.inputs,
        MARK: VERSION,
        VOLUME: {EVENTS: events_of(job.dataset)},
    }
    of_the_table = {name: mark for name, mark in findings.inputs.items() if name not in _OF_THE_INDEX}
    kept = findings.kept
    made_from = kept.table.model.get(INPUTS, {})
    if kept.number and {name: made_from.get(name) for name in of_the_table} == of_the_table:
        remove_tables(job.directory, keep=kept.number)
        return dataclasses.replace(kept.table, model=provenance)
    before, was = kept.pictures(findings.pending.contents)
    made = make_thumbnails(
        job.dataset,
        job.directory / THUMBNAILS_FILE,
        kept=before,
        was=was,
        progress=lambda done, every: report("making thumbnails", done, every),
    )
    table = updated_table(
        job.dataset,
        Embeddings.load(findings.model.embeddings, check=False),
        findings.pending.contents,
        findings.fitted,
        kept,
        findings.counts,
        provenance,
        made.thumbnails,
        lambda done, every: report("projecting", done, every),
    )
    keep_table(job.directory, table, findings.pending.contents)
    return table


def _mark_of_lists(findings: Findings) -> str:
    """16 hex digits over everything that the lists depend on."""
    return digest_of({name: findings.inputs[name] for name in ("items", "encoder", "model")})


def _built(job: ReindexJob, findings: Findings, table: ItemTable, report: Progress) -> Path:
    """The bundle of these inputs, possibly built by a killed job; other built bundles are removed."""
    out = job.directory / _BUILT
    for path in sorted(out.glob("[0-9]*")):
        try:
            if inputs_of(path) == findings.inputs:
                return path
        except BundleError:
            pass  # built again
        shutil.rmtree(path)
    fitted = findings.fitted
    return build_bundle(
        table,
        fitted.encoder,
        remap_queries(fitted.probes, fitted.table.ids, table.ids),
        out,
        job.spec,
        lists=current_lists(
            job.directory, _mark_of_lists(findings), job.dataset, findings.model.embeddings, fitted, report
        ),
        evaluation=job.evaluation,
        exclude_seen=fitted.config.exclude_seen,
        event_types=job.dataset.event_types,
        progress=lambda stage, share: report(stage, round(share * _SHARES), _SHARES),
    )
