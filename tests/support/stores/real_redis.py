"""Histories and operator state in a real Redis, with the settings that a test names."""

from typing import Any

from service.settings.groups import HistorySettings, RedisSettings
from service.stores.deployment.cluster_histories import ClusterHistories
from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState


def connection(url: str, *, prefix: str = "vlm2rec", timeout_s: float = 0.25, wait_replicas: int = 0) -> RedisSettings:
    return RedisSettings(
        redis_url=url,
        redis_prefix=prefix,
        redis_timeout_ms=round(timeout_s * 1000),
        redis_wait_replicas=wait_replicas,
    )


def open_histories(url: str, *, prefix: str = "vlm2rec", timeout_s: float = 0.25, **options: Any) -> RedisHistories:
    """Histories with caps by the names of their settings, and with `ttl_s` seconds to live instead of whole days."""
    named = [name for name in (*HistorySettings.model_fields, "ttl_s") if name in options]
    retention = retained(**{name: options.pop(name) for name in named})
    wait_replicas = options.pop("wait_replicas", 0)
    redis = connection(url, prefix=prefix, timeout_s=timeout_s, wait_replicas=wait_replicas)
    return (ClusterHistories if redis.kind == "cluster" else RedisHistories)(redis, retention, **options)


def open_operator_state(
    url: str, *, prefix: str = "vlm2rec", timeout_s: float = 0.25, **options: Any
) -> RedisOperatorState:
    return RedisOperatorState(connection(url, prefix=prefix, timeout_s=timeout_s), **options)


def retained(*, ttl_s: int | None = None, **caps: int) -> HistorySettings:
    if ttl_s is None:
        return HistorySettings(**caps)

    class Expiring(HistorySettings):
        @property
        def ttl_s(self) -> int:
            return int(ttl_s)

    return Expiring(**caps)
