"""Clients generated from the OpenAPI document have all operations, and they work."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.processes.service_process import Service

GENERATORS = {
    "openapi-python-client": "0.29.1",
    "datamodel-code-generator": "0.89.0",
    "openapi-typescript": "7.13.0",
    "jsonschema": "4.25.1",
}


def branches(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a document with where it is."""
    if isinstance(schema, dict):
        yield path, schema
        for name, part in schema.items():
            yield from branches(part, f"{path}/{name}")
    elif isinstance(schema, list):
        for place, part in enumerate(schema):
            yield from branches(part, f"{path}/{place}")


def test_every_array_says_what_is_in_it_and_no_branch_hides_a_model(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for path, schema in branches(schemas):
        if schema.get("type") == "array" and "/not/" not in path:  # what generators do not read
            assert "items" in schema, path
        if "properties" in schema and "/not" not in path:
            assert not {"anyOf", "oneOf", "allOf"} & schema.keys(), path  # each branch would become a model of its own


def test_operations_are_named_after_what_they_do(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    names = [operation["operationId"] for operations in paths.values() for operation in operations.values()]
    assert len(set(names)) == len(names)
    assert {"recommend", "recommend_batch", "similar", "store_events", "items", "item", "bundle"} <= set(names)


VALIDATE = """
import json, sys
import jsonschema
document, cases = (json.load(open(path)) for path in sys.argv[1:])
for model, body in cases:
    schema = {"$ref": f"#/components/schemas/{model}", "components": document["components"]}
    print(json.dumps(jsonschema.Draft202012Validator(schema).is_valid(body)))
"""

BODIES: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("RecommendRequest", {}, False),
    ("RecommendRequest", {"user_id": None, "items": None, "k": 3}, False),
    ("RecommendRequest", {"items": []}, True),
    ("RecommendRequest", {"user_id": "u", "items": None}, True),
    ("SimilarRequest", {}, False),
    ("SimilarRequest", {"item_id": "i1", "items": ["i2"]}, False),
    ("SimilarRequest", {"item_id": None, "items": ["i2"]}, True),
    ("SimilarRequest", {"item_id": "i1", "items": None}, True),
    *(
        ("RecommendRequest", {"items": ["i1"], "filter": {"must": [{"field": "title", **given}]}}, holds)
        for given, holds in (
            ({}, False),
            ({"eq": "hats"}, True),
            ({"eq": "hats", "in": ["hats"]}, False),
            ({"in": ["hats"], "exists": True}, False),
            ({"exists": True}, True),
            ({"gt": "a", "lte": "b"}, True),
            ({"gt": "a", "gte": "b"}, False),
            ({"lt": "a", "lte": "b"}, False),
            ({"eq": "a", "gt": "b"}, False),
            ({"gte": "a", "lt": "b", "exists": True}, False),
        )
    ),
)
ROUTES = {"RecommendRequest": "/recommend", "SimilarRequest": "/similar"}


@pytest.mark.parametrize(("model", "body", "holds"), BODIES)
def test_the_service_takes_these_bodies_and_no_others(
    client: TestClient, model: str, body: dict[str, Any], holds: bool
) -> None:
    assert client.post(ROUTES[model], json=body).status_code == (200 if holds else 422)


CALLS = """
import sys
from vlm2rec_client import Client
from vlm2rec_client.api.catalogue import items
from vlm2rec_client.api.recommend import recommend, recommend_batch, similar
from vlm2rec_client.api.users import store_events
from vlm2rec_client.models import (
    BatchRequest, Clause, EventRequest, Filter, RecommendRequest, SimilarRequest, WeightedItem,
)
client = Client(base_url=sys.argv[1])
stored = store_events.sync(client=client, body=EventRequest(user_id="u", item_id="i1", event_id="e"))
assert stored.stored == 1, stored
hats = Filter(must=[Clause(field="category", eq="hats")])
request = RecommendRequest(user_id="u", items=["i2", WeightedItem("i4", weight=0.5)], k=3, filter_=hats, explain=True)
answer = recommend.sync(client=client, body=request)
assert (answer.strategy, len(answer.items), answer.history_used) == ("sequence", 3, 3), answer
batch = recommend_batch.sync(client=client, body=BatchRequest(requests=[request, RecommendRequest(items=["i1"], k=2)]))
assert len(batch.answers) == 2, batch
near = similar.sync(client=client, body=SimilarRequest(item_id="i1", k=4))
assert len(near.items) == 4, near
page = items.sync(client=client, limit=50)
rest = items.sync(client=client, limit=50, cursor=page.next_)
assert (len(page.items), len(rest.items), rest.next_) == (50, 10, None), rest
problem = similar.sync(client=client, body=SimilarRequest(item_id="gone"))
assert problem.status == 404, problem
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a Python of its own with the generators that are Python packages."""
    directory = tmp_path_factory.mktemp("generators")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=120)
    packages = [f"{name}=={version}" for name, version in GENERATORS.items() if name != "openapi-typescript"]
    pip = [sys.executable, "-m", "pip", "--python", directory / "bin/python"]
    command = [*pip, "install", "--quiet", "--no-compile", *packages]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if ran.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be installed here: {ran.stderr.strip()[-200:]}")
    return directory / "bin"


@pytest.fixture
def document(client: TestClient, tmp_path: Path) -> Path:
    """The file with the document of the service."""
    path = tmp_path / "openapi.json"
    path.write_text(client.get("/openapi.json").text)
    return path


def run(*command: str | Path, **settings: Any) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **settings)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.slow
def test_a_python_client_is_whole_and_calls_the_service(
    start: Callable[..., Service], small_registry: Path, programs: Path, tmp_path: Path
) -> None:
    service = start("--registry", str(small_registry), "--embedded-redis")
    path, out = tmp_path / "openapi.json", tmp_path / "client"
    path.write_text(json.dumps(service.call("GET", "/openapi.json")[1]))
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    printed = run(programs / "openapi-python-client", "generate", "--path", path, "--output-path", out, env=environment)
    left_out = [line for line in printed.splitlines() if line.startswith("WARNING")]
    assert left_out == ["WARNING parsing GET /items/{item_id}/image within catalogue."]  # it has no type for pictures
    run(programs / "python", "-c", CALLS, f"http://127.0.0.1:{service.port}", cwd=out)


@pytest.mark.slow
def test_the_document_takes_the_bodies_that_the_service_takes(document: Path, programs: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([[model, body] for model, body, _ in BODIES]))
    printed = run(programs / "python", "-c", VALIDATE, document, cases)
    assert [json.loads(line) for line in printed.splitlines()] == [holds for _, _, holds in BODIES]


@pytest.mark.slow
def test_models_of_pydantic_are_made(document: Path, programs: Path, tmp_path: Path) -> None:
    models = tmp_path / "models.py"
    options = ["--input-file-type", "openapi", "--output-model-type", "pydantic_v2.BaseModel"]
    run(programs / "datamodel-codegen", "--input", document, *options, "--output", models)
    check = """
from models import BatchRequest, RecommendRequest, SimilarRequest
request = RecommendRequest.model_validate({"items": ["i1", {"item_id": "i2"}], "k": 3, "filter": {"must": []}})
assert request.k == 3
assert BatchRequest(requests=[request]).requests
assert SimilarRequest(item_id="i1").diversity == 0
"""
    run(programs / "python", "-c", check, cwd=tmp_path)


@pytest.mark.slow
def test_types_for_typescript_are_made(document: Path, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    packages = [f"openapi-typescript@{GENERATORS['openapi-typescript']}", "typescript@5"]
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), *packages]
    ran = subprocess.run(install, capture_output=True, text=True, check=False, timeout=600)
    if ran.returncode:
        pytest.skip(f"openapi-typescript cannot be installed here: {ran.stderr.strip()[-200:]}")
    programs = tmp_path / "node_modules/.bin"
    # By default it takes a property with a default for one that must be sent.
    run(programs / "openapi-typescript", document, "--default-non-nullable=false", "-o", tmp_path / "api.ts")
    (tmp_path / "use.ts").write_text(
        """
import type { components, operations } from "./api";
const request: components["schemas"]["RecommendRequest"] = { items: ["i1", { item_id: "i2", weight: 2 }], k: 3 };
type Answer = operations["recommend"]["responses"][200]["content"]["application/json"];
export const first = (answer: Answer): string | undefined => answer.items[0]?.item_id;
export const k: number | undefined = request.k;
"""
    )
    run(programs / "tsc", "--noEmit", "--strict", "--skipLibCheck", "use.ts", cwd=tmp_path)
