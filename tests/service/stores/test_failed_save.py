"""A real Redis whose background save has failed refuses writes and PING, but still serves reads."""

from pathlib import Path

import pytest
from redis import Redis

from tests.support.shops import OpenClient, eventually
from tests.support.stores.redis_pairs import on_a_port, program_of


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.2", "7.0"])
def test_reads_come_back_after_a_hiccup_while_saves_fail(tmp_path: Path, open_client: OpenClient, version: str) -> None:
    with (
        on_a_port(tmp_path, "dbfilename nowhere.rdb", program=program_of(version)) as port,
        Redis(port=port) as admin,
        open_client(redis_url=f"redis://127.0.0.1:{port}", redis_timeout_ms=2000) as client,
    ):
        assert client.post("/events", json={"user_id": "u", "item_id": "i1"}).status_code == 200
        admin.config_set("save", "1 1")
        (tmp_path / "nowhere.rdb").mkdir()  # nothing can be renamed to a directory, not even by root

        def save_failed() -> bool:
            persistence = admin.info("persistence")
            if not persistence["rdb_bgsave_in_progress"] and persistence["rdb_last_bgsave_status"] == "ok":
                admin.bgsave()
            return str(persistence["rdb_last_bgsave_status"]) == "err"

        eventually(save_failed)
        refused = client.post("/events", json={"user_id": "u", "item_id": "i2"})
        assert refused.status_code == 503
        assert "MISCONF: it takes no writes because it could not save to its disk" in refused.json()["detail"]
        assert client.get("/readyz").json()["redis"] == "up"
        with pytest.raises(Exception, match="MISCONF"):
            admin.execute_command("PING")
        admin.client_pause(3000, all=True)

        def degraded() -> bool:
            return client.post("/recommend", json={"user_id": "u"}).json()["degraded"] == "history_unavailable"

        eventually(degraded)
        eventually(lambda: not degraded())
