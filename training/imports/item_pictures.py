"""Puts pictures of an import's source into the data set by hard link, or by copy if linking fails."""

import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from training.data.data_place import confined_file
from training.imports.import_record import ImportRecord

_FOLDER = "images"


class ItemPictures:
    """Puts pictures of a source into the folder ``images`` of a data set.

    Args:
        source: directory of the source; pictures outside it are refused.
        directory: of the data set.
        record: counts missing pictures.
    """

    def __init__(self, source: Path, directory: Path, record: ImportRecord) -> None:
        self._source = source
        self._directory = directory
        self._record = record

    def take(self, names: Sequence[str | None], lines: Sequence[int], file: str) -> list[str | None]:
        """Put one picture per item into the data set.

        Args:
            names: paths relative to the source; None for an item without a picture.
            lines: line number of each item.
            file: name of the source file.

        Returns:
            Paths relative to the data set; None if the source has no such file.

        Raises:
            OSError: a picture cannot be written.
        """
        taken = []
        missing = []
        for name, line in zip(names, lines, strict=True):
            found = confined_file(self._source, name)
            taken.append(self._place(found) if found is not None else None)
            if found is None and (name or "").strip():
                missing.append(line)
        self._record.leave_empty(file, "the picture is not in the source directory; image left empty", missing)
        return taken

    def _place(self, found: Path) -> str:
        inside = found.relative_to(self._source.resolve())
        below = inside.relative_to(_FOLDER) if inside.parts[0] == _FOLDER else inside
        target = self._directory / _FOLDER / below
        number = 1
        while target.exists() and not _is_same(found, target):  # `a.png` and `images/a.png` of the source
            number += 1
            target = target.with_name(f"{below.stem}-{number}{below.suffix}")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(found, target)
        return target.relative_to(self._directory).as_posix()


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file to a new name, or copy it where that cannot be: on another file system, or one without links.

    Raises:
        OSError: the target cannot be written.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _is_same(found: Path, target: Path) -> bool:
    return found.samefile(target) or filecmp.cmp(found, target, shallow=False)
