"""Prints how many interactions of a data set a job does not use, or uses otherwise than their sender may think."""

from typing import TYPE_CHECKING

_MOST_NAMED = 5
_MANY_COPIES = 1 / 3  # of the interactions: half, where each row is there twice

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.dataset import Dataset


def print_left_out(dataset: "Dataset", console: "Console", *, of: str = "") -> None:
    """Count what is not positive, of unknown types or of unknown items, and many copies; nothing without any.

    Args:
        dataset: as it was read.
        console: to print on.
        of: beginning of each line.
    """
    if dataset.left_out:
        others = ", ".join(f"{count:,} {meaning}" for meaning, count in dataset.left_out.items())
        console.print(f"{of}not positive, so not learned from: {others}", markup=False)
    if unknown := dataset.unknown_types:
        named = ", ".join(f"{count:,} {name!r}" for name, count in list(unknown.items())[:_MOST_NAMED])
        more = f" and {len(unknown) - _MOST_NAMED:,} more types" if len(unknown) > _MOST_NAMED else ""
        default = dataset.event_types.default_type if dataset.event_types is not None else ""
        console.print(
            f"{of}{sum(unknown.values()):,} events are of types that the table lacks, so they count as {default!r}: "
            f"{named}{more}; add them under [events.types] in events.toml, as in the settings of the service",
            markup=False,
        )
    if dataset.orphans:
        console.print(
            f"{of}{dataset.orphans:,} interactions are of items that the catalogue lacks; left out", markup=False
        )
    copies, rows = dataset.copies(), dataset.interactions.height
    if copies > rows * _MANY_COPIES:
        console.print(
            f"{of}{copies:,} of {rows:,} interactions have the user, item and second of an earlier one; used as they "
            "are. If an export wrote rows twice, remove the copies (`vlm2rec data check` lists them)",
            markup=False,
        )
