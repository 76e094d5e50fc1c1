"""An experiment over two bundles on several workers: all have it, and at most two bundles are mapped."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.service.workers.test_shared_contract import Mapped, everywhere
from tests.service.workers.test_supervisor import workers_of
from tests.support.processes.service_process import Service
from tests.support.shops import ADMIN, Shop, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux"),
]

AS_ADMIN = {"X_API_Key": ADMIN}


def test_all_workers_have_it_and_map_two_bundles(start: Callable[..., Service], shop: Shop) -> None:
    registry = str(shop.registry.root)
    service = start(
        *("--registry", registry, "--embedded-redis", "--workers", "2"),
        VLM2REC_ADMIN_KEYS=ADMIN,
        VLM2REC_OUTCOMES="true",
    )
    first, second, third, _ = shop.ids
    mapped = Mapped(service, shop.registry.root)
    mapped.start()

    def asked(user: str) -> dict[str, Any]:
        status, body, _ = service.call("POST", "/recommend", {"user_id": user, "items": ["i1"], "k": 3})
        assert status == 200
        found: dict[str, Any] = body
        return found

    def is_divided() -> bool:
        answers = [asked(f"user-{number}") for number in range(6)]
        bundles = {answer.get("arm"): answer["bundle"] for answer in answers}
        return bundles == {"models/old": first, "models/new": second}

    def rolled_back(bundle_id: str) -> bool:
        """Another worker may still free a bundle; then the answer is 503, to be tried again."""
        return bool(service.call("POST", "/bundle/rollback", {"bundle": bundle_id}, **AS_ADMIN)[0] == 200)

    everywhere(lambda: asked("anna")["bundle"] == first)
    arms = [{"name": "old", "share": 0.5}, {"name": "new", "share": 0.5, "bundle": second}]
    status, body, _ = service.call("PUT", "/experiments/models", {"arms": arms, "salt": "s"}, **AS_ADMIN)
    assert (status, body["state"]) == (200, "running")
    everywhere(is_divided)
    shop.point(third)
    eventually(lambda: "waiting" in service.call("GET", "/bundle")[1]["swap"])
    os.kill(workers_of(service)[0], signal.SIGKILL)  # the replacement takes both bundles and the experiment
    everywhere(is_divided)
    eventually(lambda: rolled_back(third))
    everywhere(lambda: asked("anna")["bundle"] == third and "arm" not in asked("anna"))
    eventually(lambda: rolled_back(second))
    everywhere(is_divided)
    assert mapped.end() == 2
    groups = service.call("GET", "/experiments/models/groups", **AS_ADMIN)[1]["groups"]
    assert {group["arm"] for group in groups} == {"old", "new"}
    _, lines = service.end()
    assert not [line for line in lines if line["event"] in {"watcher failed", "outcome not counted"}]
