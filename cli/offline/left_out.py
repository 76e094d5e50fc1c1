"""Prints how many interactions of a data set a job does not use, and how many are likely there twice."""

from typing import TYPE_CHECKING

_MANY_COPIES = 1 / 3  # of the interactions: half, where each row is there twice

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.dataset import Dataset


def print_left_out(dataset: "Dataset", console: "Console", *, of: str = "") -> None:
    """Count the interactions that are not positive, those of unknown items, and many copies; nothing without any.

    Args:
        dataset: as it was read.
        console: to print on.
        of: beginning of each line.
    """
    if dataset.left_out:
        others = ", ".join(f"{count:,} {meaning}" for meaning, count in dataset.left_out.items())
        console.print(f"{of}not positive, so not learned from: {others}", markup=False)
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
