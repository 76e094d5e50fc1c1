"""Records the unusable pictures of a training run in ``unreadable.json``."""

import json
from collections.abc import Mapping
from pathlib import Path

from index.machine.text_files import replace_text
from training.data.dataset import Dataset

UNREADABLE_FILE = "unreadable.json"


def record_unreadable(directory: Path, dataset: Dataset, found: Mapping[int, str]) -> None:
    """Add pictures to the record; those that are in it stay, as a resumed run reads only what is left.

    Args:
        directory: of the run's training.
        dataset: the catalogue.
        found: item row → reason.
    """
    path, ids = directory / UNREADABLE_FILE, dataset.item_ids() if found else []
    known = recorded_unreadable(directory)
    if found or not path.is_file():
        known |= {ids[row]: found[row] for row in sorted(found)}
        replace_text(path, json.dumps(known, indent=2, ensure_ascii=False) + "\n")


def recorded_unreadable(directory: Path) -> dict[str, str]:
    """Item id → reason, of the run's training in a directory; empty where there is no record, or a damaged one."""
    try:
        return dict(json.loads((directory / UNREADABLE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
