"""URLs of clusters and Sentinels: their parts, and the rule that a wrong one breaks."""

import pytest

from service.errors import SettingsError
from service.settings.load import load_settings
from service.settings.redis_url import Address, database_of, kind_of, parse_redis_url
from service.stores.deployment.opening import open_pipeline


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://host", "one"),
        ("rediss://host", "one"),
        ("unix:///a", "one"),
        ("REDIS+CLUSTER://host", "cluster"),
        ("rediss+cluster://host", "cluster"),
        ("redis+sentinel://host/m", "sentinel"),
        ("http+cluster://host", "one"),
    ],
)
def test_the_scheme_says_what_is_named(url: str, kind: str) -> None:
    assert kind_of(url) == kind


def test_the_parts_of_a_cluster() -> None:
    url = parse_redis_url("rediss+cluster://u:p%40ss@One:7000,two,[::1]:7002,one:7000/0?ssl_ca_certs=/ca.pem")
    assert url.addresses == (Address("one", 7000), Address("two", 6379), Address("::1", 7002))
    assert url.server_url == "rediss://u:p%40ss@one:7000/0?ssl_ca_certs=/ca.pem"


def test_the_parts_of_sentinels() -> None:
    url = parse_redis_url("redis+sentinel://:pw@a,b:1/my%20master/2?sentinel_password=s%26&client_name=c")
    assert (url.addresses, url.service) == ((Address("a", 26_379), Address("b", 1)), "my master")
    assert url.server_url == "redis://:pw@a:26379/2?client_name=c"
    assert url.sentinel_login == (("password", "s&"),)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("redis+cluster://", "1 to 64 hosts"),
        ("redis+cluster://a,,b", "1 to 64 hosts"),
        ("redis+cluster://" + ",".join(f"h{n}" for n in range(65)), "1 to 64 hosts"),
        ("redis+cluster://a:port", "1 to 64 hosts"),
        ("redis+cluster://a:６３７９", "1 to 64 hosts"),
        ("redis+sentinel://a/m/１", "name of the master"),
        ("redis+cluster://a:70000", "ports of 1 to 65535"),
        ("redis+cluster://a/1", "only the database 0"),
        ("redis+cluster://a?db=3", "only the database 0"),
        ("redis+sentinel://a", "name of the master"),
        ("redis+sentinel://a/m/x", "name of the master"),
        ("redis+cluster://a?colour=blue", "redis-py knows"),
    ],
)
def test_a_wrong_url_is_refused_with_the_rule_and_without_the_password(url: str, rule: str) -> None:
    for secret in (url, url.replace("://", "://u:hunter2@", 1)):
        with pytest.raises(SettingsError, match=rule) as refused:
            open_pipeline(load_settings(registry="r", redis_url=secret).redis)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("raw", ["hun/ter2", "hun#ter2", "hun?ter2", "hunter2%"])
def test_a_raw_password_is_refused_as_for_one_server(raw: str) -> None:
    with pytest.raises(SettingsError, match="percent-encoded") as refused:
        open_pipeline(load_settings(registry="r", redis_url=f"redis+cluster://u:{raw}@a:1,b:2").redis)
    assert raw not in str(refused.value)


def test_several_hosts_are_one_database_in_any_order() -> None:
    assert database_of("redis+cluster://u:p@b:1,a:2") == database_of("redis+cluster://a:2,b:1") == "a:2,b:1/#0"
    assert database_of("redis+sentinel://b,a:1/m/3") == "a:1,b:26379/m#3"
    assert database_of("redis://u:p@Host/2") == "host:6379#2"
