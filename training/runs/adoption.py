"""Replaces parts of a run by those that a job made aside, whole or not at all, also where it is killed."""

# The one step that decides is a rename: what was made becomes ``RUN/.adopted``. From then on it is only moved forward,
# by the job itself or by the next one that locks the run. Nothing of it lies in the job's own directory any more, so a
# job that begins anew deletes neither the new parts nor the old ones.

import shutil
from pathlib import Path
from typing import Final

from index.bundle.integrity import sync_directory, sync_file

_ADOPTED: Final = ".adopted"
_REPLACED: Final = ".replaced"
EVALUATION_FILE: Final = "evaluation.json"
OUTDATED_EVALUATION_FILE: Final = "evaluation-outdated.json"
"""Figures of the encoder that an adopted one has replaced."""


def adopt(made: Path, run: Path) -> None:
    """Make every file and directory of a directory part of the run, in place of those of the same name.

    ``RUN/evaluation.json`` is of the encoder that is replaced, so it becomes ``evaluation-outdated.json``.

    Args:
        made: directory on the same file system as the run, whose parts are complete; it is gone afterwards. If there is
            none, nothing changes.
        run: the locked run directory.

    Raises:
        OSError: a part cannot be moved.
    """
    if made.is_dir():
        for path in sorted(made.rglob("*")):
            if path.is_file():
                sync_file(path)
            elif path.is_dir():
                sync_directory(path)
        sync_directory(made)
        made.rename(run / _ADOPTED)
        sync_directory(run)
    finish_adoption(run)


def finish_adoption(run: Path) -> None:
    """Finish an adoption that was killed after it was decided; without one nothing changes.

    Args:
        run: the locked run directory.

    Raises:
        OSError: a part cannot be moved.
    """
    adopted, replaced = run / _ADOPTED, run / _REPLACED
    if replaced.exists():  # parts whose successors are in place or in `adopted`
        shutil.rmtree(replaced)
    if not adopted.is_dir():
        return
    replaced.mkdir()
    if (evaluation := run / EVALUATION_FILE).is_file() and not (adopted / EVALUATION_FILE).exists():
        evaluation.replace(run / OUTDATED_EVALUATION_FILE)
    for path in sorted(adopted.iterdir()):
        target = run / path.name
        if target.is_dir() or (path.is_dir() and target.exists()):
            target.rename(replaced / path.name)
        path.replace(target)  # a file takes the place of a file in one step
    sync_directory(run)
    adopted.rmdir()
    shutil.rmtree(replaced)


def adoption_is_pending(run: Path) -> bool:
    """Whether an adoption was killed after it was decided.

    Args:
        run: the run directory; it need not exist.
    """
    return (run / _ADOPTED).is_dir()
