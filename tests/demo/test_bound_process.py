"""What the demo starts ends with it, however the demo ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.served import children
from tests.support.shops import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_program_ends_when_its_parent_is_killed() -> None:
    script = (
        "import subprocess; from demo.bound_process import bound_command; "
        "child = subprocess.Popen(bound_command(['/bin/sh', '-c', 'echo started; exec sleep 600'])); "
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip() for _ in range(2)}
        (pid,) = (int(line) for line in lines - {"started"})
        assert not gone(pid)
        parent.kill()
        eventually(lambda: gone(pid))


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_of_the_demo_ends_when_the_demo_is_killed(by: signal.Signals, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    home = tmp_path / "demo"
    command = [sys.executable, "-m", "cli.main", "demo", str(home), "--no-vlm", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        eventually(lambda: children(parent.pid))
        (step,) = children(parent.pid)
        os.kill(parent.pid, by)
        assert parent.wait(60) == -by
    eventually(lambda: gone(step))
    assert not (home / "data" / "demo.json").exists()  # the step did not end by itself
