"""What images and compose are made of fits together, as far as it shows without Docker."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from index.bundle.bundle import Bundle
from index.bundle.registry import Registry
from service.settings.load import GROUP_OF
from tests.support.promql import OPS

ROOT = OPS.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_FILES = sorted(ROOT.glob("docker-compose*.yml"))


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return read


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    with tarfile.open(OPS / "demo-bundle" / "bundle.tar.gz") as packed:
        packed.extractall(out, filter="data")
    return out / "bundle"


def test_the_demo_bundle_is_small_whole_and_tells_nothing_of_its_maker(demo_bundle: Path, tmp_path: Path) -> None:
    assert (OPS / "demo-bundle" / "bundle.tar.gz").stat().st_size < 5_000_000
    registry = Registry(tmp_path / "bundles")
    bundle = Bundle.load(registry.root / registry.publish(demo_bundle), verify="full")
    assert len(bundle) == 600
    assert (demo_bundle / "thumbnails.npy").stat().st_size > 1_000_000
    assert bundle.list_scores is not None
    for file in (path for path in demo_bundle.rglob("*") if path.is_file()):
        assert not re.search(rb"/(home|root|work|tmp|Users)/", file.read_bytes()), file.name


def test_the_seed_publishes_once_and_leaves_another_bundle_alone(tmp_path: Path, demo_bundle: Path) -> None:
    script = (OPS / "demo-bundle" / "seed.sh").read_text()
    script = script.replace("/tmp", str(tmp_path)).replace("/demo/", f"{OPS}/demo-bundle/")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "vlm2rec"
    command.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m cli.main "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VLM2REC_REGISTRY": f"{tmp_path}/bundles"}

    def seed() -> str:
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout

    demo = json.loads((demo_bundle / "manifest.json").read_text())
    assert f"-{demo['content'][:6]}" in seed()
    pointer = (tmp_path / "bundles" / "pointer.json").read_bytes()
    assert "the demo bundle is not published" in seed()
    assert (tmp_path / "bundles" / "pointer.json").read_bytes() == pointer


def test_every_setting_that_is_passed_exists() -> None:
    texts = [DOCKERFILE, *(file.read_text() for file in COMPOSE_FILES)]
    passed = {name for text in texts for name in re.findall(r"\b(VLM2REC_[A-Z0-9_]+)[=:] ?(?!-)", text)}
    # Of compose itself, not of the service.
    passed -= {"VLM2REC_BACKUPS", "VLM2REC_DATA", "VLM2REC_SERVE_IMAGE", "VLM2REC_TRAIN_IMAGE"}
    assert len(passed) >= 9
    assert passed <= {f"VLM2REC_{name.upper()}" for name in GROUP_OF}


def test_the_classic_builder_finds_what_it_copies() -> None:
    assert "# syntax=" not in DOCKERFILE
    assert not re.search(r"<<|--link|--mount", DOCKERFILE)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, check=True).stdout
            assert tracked or not (ROOT / ".git").exists(), source
            assert any(source == name or source.startswith(f"{name}/") for name in let_in), source


def test_an_image_gets_the_dependencies_of_its_extras() -> None:
    script = OPS / "image" / "requirements.py"
    ran = subprocess.run([sys.executable, script, "cpu"], cwd=ROOT, capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ran.stdout.splitlines() == project["dependencies"] + project["optional-dependencies"]["cpu"]
    assert not re.search("torch|transformers|peft", ran.stdout)
    refused = subprocess.run([sys.executable, script, "tpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "tpu" in refused.stderr


def test_every_argument_of_the_build_can_be_given_to_compose_and_make() -> None:
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert arguments == {"ENGINE", "EXTRAS"}
    for name, service in compose()["services"].items():
        if "build" in service:
            given = service["build"]["args"]
            assert set(given) == arguments, name
            assert all(value.startswith(f"${{{argument}:-") for argument, value in given.items()), name
    for line in re.findall(r"^\tdocker build .*", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert set(re.findall(r"--build-arg (\w+)=", line)) == arguments


def test_every_directory_that_the_image_names_is_the_users_and_writable_on_a_read_only_root() -> None:
    named = {Path(path) for path in re.findall(r"VLM2REC_[A-Z_]+=(/\S+)", DOCKERFILE)}
    directories = {path.parent if path.suffix else path for path in named}
    assert {path.name for path in directories} == {"bundles", "cache", "state"}
    (made,) = re.findall(r"install -d -o 10001 -g 10001 (.+?)\n\n", DOCKERFILE, re.DOTALL)
    assert {str(path) for path in directories} <= set(made.replace("\\\n", " ").split())
    for name, needed in {
        "service": ("cache", "state"),
        "train": ("cache", "bundles"),
        "reindex": ("cache", "bundles"),
        "backup": ("backups", "bundles"),
    }.items():
        mounted = {volume.rpartition(":")[2] for volume in compose()["services"][name]["volumes"]}
        assert {f"/var/lib/vlm2rec/{directory}" for directory in needed} <= mounted, name
        # A new volume takes its owner from the directory of the image.
        assert {place for place in mounted if place.startswith("/var/lib/")} <= set(made.split()), name


@pytest.mark.program("docker-compose")
@pytest.mark.parametrize("name", [file.name for file in COMPOSE_FILES])
def test_docker_compose_takes_the_file(name: str) -> None:
    files = dict.fromkeys(["docker-compose.yml", name])
    command = [
        "docker-compose",
        *(part for file in files for part in ("-f", file)),
        "--profile",
        "jobs",
        "config",
        "-q",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_nothing_is_published_beyond_this_machine_and_the_service_is_hardened() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:"), name
        assert "no-new-privileges:true" in service["security_opt"], name
    service = services["service"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "bundles:/var/lib/vlm2rec/bundles:ro" in service["volumes"]
    assert {name for name, service in services.items() if service.get("profiles") == ["jobs"]} == {
        "train",
        "reindex",
        "reindex-nightly",
        "backup",
    }


def test_the_nightly_script_waits_and_hands_the_end_on() -> None:
    with subprocess.Popen(
        ["sh", OPS / "jobs" / "nightly.sh", "02:15", "false"], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert re.fullmatch(r"next run: \d{4}-\d\d-\d\dT02:15Z\n", running.stdout.readline())
        running.send_signal(signal.SIGTERM)
        try:
            assert running.wait(10) == 0
        finally:
            running.kill()
    refused = subprocess.run(
        ["sh", OPS / "jobs" / "nightly.sh", "25:99", "false"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
