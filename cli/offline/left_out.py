"""Prints how many interactions of a data set a job does not use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.dataset import Dataset


def print_left_out(dataset: "Dataset", console: "Console", *, of: str = "") -> None:
    """Count the interactions that are not positive and those of unknown items; nothing where there are none.

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
