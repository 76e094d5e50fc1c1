"""Starts a real HAProxy in front of replicas."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes.listening import listening

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


@contextlib.contextmanager
def haproxy(folder: Path, configuration: str, port: int) -> Iterator[None]:
    """Run HAProxy until the end of the context.

    Args:
        folder: for its files.
        configuration: the whole of it.
        port: on which this has it listen.
    """
    program = shutil.which("haproxy", path=_PATH)
    assert program is not None
    file, log = folder / "haproxy.cfg", folder / "haproxy.log"
    file.write_text(configuration)
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-db", "-f", str(file)], stdout=output, stderr=output)
    with listening(process, port, log):
        yield
