"""Key files are read again when they change; a bad file changes nothing, and no key is shown."""

import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.access.auth import KeyRing
from service.access.key_file import KeyFile, digest_of, keep_apart
from service.errors import KeyRefused, SettingsError
from service.settings.load import load_settings
from tests.support.shops import OpenClient

OLD, NEW, OTHER, ADMIN = ("old-key-0123456789", "new-key-0123456789", "other-key-0123456789", "admin-key-0123456789")


class Files:
    """A file with keys, a clock that a test sets, and the reported errors."""

    def __init__(self, folder: Path) -> None:
        self.path, self.now, self.errors = folder / "keys", 0.0, list[str]()
        self._written = 0

    def write(self, text: str | bytes) -> None:
        """Replace the file by a new one, as Kubernetes does."""
        aside = self.path.with_suffix(".new")
        aside.write_bytes(text if isinstance(text, bytes) else text.encode())
        self._written += 1
        os.utime(aside, (self._written, self._written))
        aside.replace(self.path)

    def source(self, *given: str) -> KeyFile:
        return KeyFile(
            "api_keys_file", given, self.path, scoped=True, on_error=self.errors.append, clock=lambda: self.now
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def digests(*keys: str) -> dict[bytes, None]:
    """The keys, with every scope each."""
    return dict.fromkeys(map(digest_of, keys))


def test_one_a_line(files: Files) -> None:
    files.write(f"# since March\n{OLD}\n\n  {NEW}  \r\n{OLD}\n")
    assert files.source(OTHER).scopes() == digests(OTHER, OLD, NEW)


def test_a_changed_file_counts_within_a_second_or_so(files: Files) -> None:
    files.write(OLD)
    source = files.source()
    files.write(NEW)
    files.now += 0.9
    assert source.scopes() == digests(OLD)
    files.now += 0.2
    assert source.scopes() == digests(NEW)
    files.path.write_text(f"{NEW}\n{OTHER}\n")  # in place, as an editor does it
    files.now += 1.1
    assert source.scopes() == digests(NEW, OTHER)
    assert not files.errors


def test_a_key_has_the_scopes_of_its_line(files: Files) -> None:
    files.write(f"{OLD} scopes=recommend,events\n{NEW}\t scopes=merge\n{OTHER}\n{OTHER}\n")
    assert files.source().scopes() == {
        digest_of(OLD): {"recommend", "events"}, digest_of(NEW): {"merge"}, digest_of(OTHER): None,
    }  # fmt: skip
    files.write(f"{OLD} scopes=outcomes")
    source = files.source()
    files.write(f"{OLD} scopes=outcomes,merge")
    files.now += 1.1
    assert source.scopes() == {digest_of(OLD): {"outcomes", "merge"}}


def test_a_key_has_the_name_of_its_line(files: Files) -> None:
    files.write(f"{OLD} name=anna\n{NEW}\tscopes=merge name=shop-2\n{OTHER} name=shop-2  scopes=merge\n{ADMIN}\n")
    source = files.source(f"{'k' * 16} name=carl")
    names = {OLD: "anna", NEW: "shop-2", OTHER: "shop-2", "k" * 16: "carl"}
    assert source.names == {digest_of(key): name for key, name in names.items()}
    assert source.scopes()[digest_of(NEW)] == source.scopes()[digest_of(OTHER)] == {"merge"}
    assert source.scopes()[digest_of(OLD)] is source.scopes()[digest_of("k" * 16)] is None
    files.write(f"{OLD} name=bob\n{OLD}\n")
    files.now += 1.1
    source.scopes()
    assert KeyRing([source], open_without_keys=False).name_of(digest_of(OLD)) == "bob"
    assert KeyRing([source], open_without_keys=False).name_of(digest_of(NEW)) is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (f"{OLD} name=", "the name of a key must have 1 to 64 .*; line 1 of"),
        (f"{OLD}\n{NEW} name=bo/b", "the name of a key must have 1 to 64 .*; line 2 of"),
        (f"{OLD} name={'n' * 65}", "the name of a key must have 1 to 64"),
        (f"{OLD} name=bo b", "every key must have 16 to 512"),
        (f"{OLD} name=bob name=bob", "every key must have 16 to 512"),
        (f"{OLD} name=bob\n{OLD} name=carl", "a key must have one name; that on line 2 of"),
        ("name=bob-the-administrator", "every key must have 16 to 512"),
    ],
)
def test_a_bad_name_is_refused_and_quoted_nowhere(files: Files, text: str, rule: str) -> None:
    files.write(text)
    with pytest.raises(SettingsError, match=rule) as refused:
        files.source()
    assert not any(word in str(refused.value) for word in (OLD, NEW, "bob", "bo/b"))
    if "\n" not in text:
        with pytest.raises(SettingsError, match=r"api_keys: .*(every key must have|the name of a key must have)"):
            load_settings(registry="r", api_keys=[text])


def test_a_named_key_is_of_one_kind_only() -> None:
    with pytest.raises(SettingsError, match="a key must be of one kind only"):
        load_settings(registry="r", api_keys=[OLD], admin_keys=[f"{OLD} name=anna"])
    with pytest.raises(SettingsError, match=r"admin_keys: .*a name may follow it, as in KEY name=NAME"):
        load_settings(registry="r", admin_keys=[f"{OLD} scopes=merge"])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (f"{OLD}\n{NEW} scopes=everything", "line 2 of"),
        (f"{OLD} scopes=", "scopes must be some of recommend, catalogue, events, users, erase, merge, outcomes, with"),
        (f"{OLD} scopes=merge, users", "line 1 of"),
        (f"{OLD} scopes=merge\n{OLD}", "must have one set of scopes; that on line 2 of"),
        ("short scopes=recommend,events", "every key must have 16 to 512"),
    ],
)
def test_a_bad_scope_is_refused_and_quoted_nowhere(files: Files, text: str, rule: str) -> None:
    files.write(text)
    with pytest.raises(SettingsError, match=rule) as refused:
        files.source()
    assert not any(word in str(refused.value) for word in (OLD, NEW, "everything"))
    files.write(OLD)
    source = files.source()
    files.write(text)
    files.now += 1.1
    assert source.scopes() == digests(OLD)  # a mistake opens nothing and closes nothing


@pytest.mark.parametrize(
    "line",
    [
        "scopes=recommend",  # 16 characters, as many as a key needs
        "  scopes=recommend,events",
        "SCOPES=recommend,events",
        "scope=recommend,events",
        "mobile-application:",
        f"mobile: {NEW}",
        "VLM2REC_API_KEYS=",
        "the key of the mobile application",
        f"{NEW} scope=recommend",
        f"{NEW} scopes = recommend",
        f"{NEW} {OTHER}",
        f"{NEW}\x00",
        f"{NEW}\x7f",
        f"\ufeff{NEW}",
        "\x01" * 16,
    ],
)
def test_a_line_without_a_key_makes_none(files: Files, line: str) -> None:
    files.write(f"# keys\n{OLD}\n{line}\n")
    with pytest.raises(SettingsError, match=f"api_keys_file: .*; line 3 of {files.path} ") as refused:
        files.source()
    assert NEW not in str(refused.value)
    assert "recommend" not in str(refused.value)
    files.write(OLD)
    source = files.source()
    files.write(f"# keys\n{OLD}\n{line}\n")
    files.now += 1.1
    assert source.scopes() == digests(OLD)
    with pytest.raises(SettingsError, match=r"api_keys: .*every key must have 16 to 512"):
        load_settings(registry="r", api_keys=[line])


def test_keys_that_end_as_base64_or_hold_signs_are_keys(files: Files) -> None:
    keys = "c2l4dGVlbi1ieXRlcy1h==", "aB3:/+=_-.~!$&'()*;#", "https://0123456789", "0123456789abcdef="
    files.write("\n".join(keys))
    assert files.source().scopes() == digests(*keys)


def test_a_key_of_the_settings_has_every_scope_and_no_other_kind_has_scopes(files: Files) -> None:
    files.write(f"{OLD} scopes=merge")
    with pytest.raises(SettingsError, match="one set of scopes"):
        files.source(OLD)
    with pytest.raises(SettingsError, match="admin_keys_file: only API keys may have scopes; line 1 of"):
        KeyFile("admin_keys_file", (), files.path)


@pytest.mark.parametrize(
    "bad",
    ["", "# none\n", "short\n", f"{NEW} scopes=all\n", f"{NEW}\nshort\n", b"\xff" * 20, "ключ" * 10, "k" * 70_000],
)
def test_a_bad_change_changes_nothing_and_is_logged_once(files: Files, bad: str | bytes) -> None:
    files.write(OLD)
    source = files.source()
    files.write(bad)
    for _ in range(3):
        files.now += 1.1
        assert source.scopes() == digests(OLD)
    (error,) = files.errors
    assert error.endswith("; the keys stay as they were")
    assert NEW not in error
    assert "short" not in error
    files.write(NEW)
    files.now += 1.1
    assert source.scopes() == digests(NEW)


def test_a_file_that_is_gone_changes_nothing(files: Files) -> None:
    files.write(OLD)
    source = files.source()
    files.path.unlink()
    files.now += 1.1
    assert source.scopes() == digests(OLD)
    assert "cannot" not in files.errors[0]
    assert "must name a file that can be read" in files.errors[0]


@pytest.mark.parametrize("text", ["", "short"])
def test_at_the_start_it_must_be_good(files: Files, text: str) -> None:
    with pytest.raises(SettingsError, match="api_keys_file must name a file that can be read"):
        files.source()
    files.write(text)
    with pytest.raises(SettingsError, match="api_keys_file"):
        files.source()


def test_no_key_is_of_both_kinds_now_or_later(files: Files, tmp_path: Path) -> None:
    files.write(f"{OLD}\n{ADMIN}\n")
    admin = KeyFile("admin_keys_file", [ADMIN])
    with pytest.raises(SettingsError, match="must be of one kind only: an API key, an admin key or a metrics key"):
        keep_apart(files.source(), admin)
    files.write(OLD)
    api = files.source()
    keep_apart(api, admin)
    files.write(f"{NEW}\n{ADMIN}\n")
    files.now += 1.1
    assert api.scopes() == digests(OLD)
    assert ADMIN not in files.errors[0]


class TwoFiles:
    """A file with API keys and one with admin keys, checked by one clock."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files, self.admin_path = files, folder / "admin"
        files.write(f"{OLD}\n{OTHER}\n")
        self.write_admin(f"{ADMIN}\n")
        self.api = files.source()
        self.admin = KeyFile(
            "admin_keys_file", (), self.admin_path, on_error=files.errors.append, clock=lambda: files.now
        )
        keep_apart(self.admin, self.api)

    def write_admin(self, text: str) -> None:
        aside = self.admin_path.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.admin_path)

    def read(self, first: str) -> tuple[object, object]:
        """The keys of both a second later, those of one of them read first."""
        self._files.now += 1.1
        if first == "admin":
            self.admin.scopes()
        return self.api.scopes(), self.admin.scopes()


@pytest.mark.parametrize("first", ["api", "admin"])
def test_a_key_moves_from_one_file_to_another_within_a_check(files: Files, tmp_path: Path, first: str) -> None:
    both = TwoFiles(files, tmp_path)
    files.now += 0.6
    both.api.scopes()
    files.write(OTHER)
    both.write_admin(f"{OLD}\n")  # the admin key of before has leaked
    assert both.read(first) == (digests(OTHER), digests(OLD))
    assert not files.errors


@pytest.mark.parametrize("first", ["api", "admin"])
def test_keys_that_two_files_swap_are_taken_together(files: Files, tmp_path: Path, first: str) -> None:
    both = TwoFiles(files, tmp_path)
    files.write(f"{ADMIN}\n{OTHER}\n")
    both.write_admin(f"{OLD}\n")
    assert both.read(first) == (digests(ADMIN, OTHER), digests(OLD))
    assert not files.errors


@pytest.mark.parametrize("first", ["api", "admin"])
def test_a_refused_file_is_taken_once_the_other_one_lacks_its_key(files: Files, tmp_path: Path, first: str) -> None:
    both = TwoFiles(files, tmp_path)
    both.write_admin(f"{OLD}\n")
    for _ in range(3):
        assert both.read(first) == (digests(OLD, OTHER), digests(ADMIN))
    assert files.errors == [
        "admin_keys_file: a key must be of one kind only: an API key, an admin key or a metrics key; the keys stay as "
        "they were"
    ]
    files.write(OTHER)
    assert both.read(first) == (digests(OTHER), digests(OLD))
    assert len(files.errors) == 1


def test_of_two_changed_files_a_good_one_is_taken(files: Files, tmp_path: Path) -> None:
    both = TwoFiles(files, tmp_path)
    files.write(f"{NEW}\nshort\n")
    both.write_admin(f"{ADMIN}-2\n")
    assert both.read("api") == (digests(OLD, OTHER), digests(f"{ADMIN}-2"))
    (error,) = files.errors
    assert error.startswith("api_keys_file: ")


def test_a_file_that_may_be_read_again_counts_although_it_did_not_change(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(OLD)
    source = files.source()
    files.write(NEW)
    with monkeypatch.context() as refused:
        refused.setattr("service.access.key_file.read_keys", no_permission)
        for _ in range(3):
            files.now += 1.1
            assert source.scopes() == digests(OLD)
    files.now += 1.1
    assert source.scopes() == digests(NEW)
    assert files.errors == ["may not be read; the keys stay as they were"]


def no_permission(_file: Path, _setting: str, **_more: bool) -> None:
    raise SettingsError("may not be read")


def test_a_ring_follows_its_file(files: Files) -> None:
    from starlette.datastructures import Headers

    files.write(OLD)
    ring = KeyRing([files.source()], open_without_keys=True)
    ring.check(Headers({"x-api-key": OLD}))
    files.write(NEW)
    files.now += 1.1
    assert ring.check(Headers({"x-api-key": NEW})) == digest_of(NEW)
    with pytest.raises(KeyRefused):
        ring.check(Headers({"x-api-key": OLD}))


def answer_to(client: TestClient, key: str, path: str = "/items") -> int:
    return client.get(path, headers={"authorization": f"Bearer {key}"}).status_code


def test_keys_are_changed_without_a_restart(
    open_client: OpenClient, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.access.key_file._CHECK_S", 0.0)
    admin = tmp_path / "admin"
    admin.write_text(ADMIN)
    files.write(OLD)
    with open_client(api_keys=OTHER, api_keys_file=files.path, admin_keys_file=admin) as client:
        assert client.get("/items").status_code == 401
        assert [answer_to(client, key) for key in (OTHER, OLD, ADMIN, NEW)] == [200, 200, 200, 403]
        files.write(f"{OLD}\n{NEW}\n")  # both for a while, so that nobody is locked out
        assert [answer_to(client, key) for key in (OLD, NEW)] == [200, 200]
        files.write(NEW)
        assert [answer_to(client, key) for key in (OLD, NEW)] == [403, 200]
        files.write("")
        assert [answer_to(client, key) for key in (OLD, NEW)] == [403, 200]
        assert client.get("/items").status_code == 401  # an empty file never opens the service
        reload = {key: client.post("/bundle/reload", headers={"x-api-key": key}).status_code for key in (NEW, ADMIN)}
        assert reload[NEW] == 403
        assert reload[ADMIN] != 403


def test_the_redis_url_may_be_in_a_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLM2REC_REDIS_URL", raising=False)
    files.write("redis://service:hunter2-hunter2@redis:6379/0\n")
    settings = load_settings(registry="r", redis_url_file=files.path)
    assert settings.redis.url == "redis://service:hunter2-hunter2@redis:6379/0"
    assert "hunter2" not in repr(settings)
    with pytest.raises(SettingsError, match="set redis_url or redis_url_file, not both") as refused:
        load_settings(registry="r", redis_url_file=files.path, redis_url="redis://:hunter2@x")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(SettingsError, match="redis_url_file must name a file that can be read, got /nowhere"):
        load_settings(registry="r", redis_url_file="/nowhere")
