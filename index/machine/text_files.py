"""Writes a text file so that it is never seen half-written."""

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it; makes its directory. A device or a pipe is written as it is.

    Args:
        path: of the file, which is replaced.
        text: its content, written in UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    from index.machine.disk import is_stream  # numpy comes with it, which `vlm2rec --help` never loads

    if is_stream(path):
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
