"""The configurations of ops/ with the addresses of a test."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.support.proxies.haproxy import haproxy
from tests.support.proxies.nginx import nginx

OPS = Path(__file__).parents[3] / "ops"


@dataclass(frozen=True)
class Proxy:
    """A proxy with the configuration of ops/ for it.

    Attributes:
        file: the configuration, below ops/.
        listens: what stands before the address on which it listens.
        run: starts it: folder, configuration, port.
    """

    file: str
    listens: str
    run: Callable[[Path, str, int], AbstractContextManager[None]]

    def configuration(self, port: int, replicas: Sequence[int]) -> str:
        """The configuration as its users make it theirs.

        Args:
            port: on which it listens.
            replicas: ports of the three replicas.
        """
        text = (OPS / self.file).read_text()
        for number, replica in enumerate(replicas, 1):
            assert f"replica-{number}:8000" in text
            text = text.replace(f"replica-{number}:8000", f"127.0.0.1:{replica}")
        assert text.count(f"{self.listens}80") + text.count(f"{self.listens}:80") == 1
        return re.sub(rf"{self.listens}:?80", f"{self.listens}127.0.0.1:{port}", text)


NGINX = Proxy("nginx/vlm2rec.conf", "listen ", nginx)
HAPROXY = Proxy("haproxy/haproxy.cfg", "bind ", haproxy)
