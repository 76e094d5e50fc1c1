"""The files of the page at `/`, without a browser: content, policy, and no other file."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import service
from service.api.pages.playground import POLICY
from tests.support.shops import OpenClient

STATIC = Path(service.__file__).parent / "static"
FILES = sorted(path.name for path in STATIC.iterdir())
TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/playground/{name}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_and_cached_by_its_tag(client: TestClient, name: str) -> None:
    answer = client.get(path_of(name))
    assert (answer.status_code, answer.content) == (200, (STATIC / name).read_bytes())
    assert answer.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    known = client.get(path_of(name), headers={"If-None-Match": answer.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert known.headers["etag"] == answer.headers["etag"]
    assert "content-type" not in known.headers
    other = client.get(path_of(name), headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/index.html",
        "/playground/../app.py",
        "/playground/%2e%2e/app.py",
        "/playground/..%2fapp.py",
        "/playground/none.js",
        "/static/app.js",
    ],
)
def test_nothing_else_is(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_needs_no_key_and_what_it_shows_does(open_client: OpenClient) -> None:
    with open_client(api_keys=["a-key-that-opens-data"]) as client:
        assert [client.get(path_of(name)).status_code for name in FILES] == [200] * len(FILES)
        assert client.get("/items").status_code == 401


def test_the_policy_lets_in_nothing_but_own_files() -> None:
    policy = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in POLICY


class Tags(HTMLParser):
    """Ids, references, and whatever a strict policy would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.named: list[str] = []
        self.refused: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attrs}
        self.ids += [has["id"]] if "id" in has else []
        self.named += " ".join(has.get(name, "") for name in ("aria-labelledby", "aria-describedby", "for")).split()
        inline = tag == "style" or (tag == "script" and "src" not in has)
        self.refused += [tag] if inline else []
        self.refused += [name for name in has if name == "style" or name.startswith("on")]


def test_page_and_scripts_fit_each_other() -> None:
    tags = Tags()
    tags.feed((STATIC / "index.html").read_text())
    assert tags.refused == []
    assert len(tags.ids) == len(set(tags.ids))
    assert set(tags.named) <= set(tags.ids)
    scripts = {name: (STATIC / name).read_text() for name in FILES if name.endswith(".js")}
    wanted = {name for script in scripts.values() for name in re.findall(r'byId\("([\w-]+)"\)', script)}
    assert wanted <= set(tags.ids)
    for script in scripts.values():
        assert set(re.findall(r'from "\./([\w.]+)"', script)) <= set(FILES)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)


def test_no_file_names_another_host_or_is_too_long() -> None:
    for name in FILES:
        text = (STATIC / name).read_text()
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) - {"http://www.w3.org"}  # a namespace, not loaded
        assert hosts == set(), name
        assert len(text.splitlines()) <= 400, name
