"""Starts a real nginx in front of the service, or says why none can be started."""

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes.listening import listening

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_CONFIGURATION = """
daemon off;
user {user} {group};
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def nginx(folder: Path, http: str, port: int) -> Iterator[None]:
    """Run nginx until the end of the context.

    Args:
        folder: for its files.
        http: what its `http` block says.
        port: on which this has it listen.
    """
    program = shutil.which("nginx", path=_PATH)
    if program is None:
        pytest.skip("nginx is not installed")
    file = folder / "nginx.conf"
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    file.write_text(_CONFIGURATION.format(folder=folder, http=http, user=user, group=group))
    process = subprocess.Popen(
        [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with listening(process, port, folder / "error.log"):
        yield
