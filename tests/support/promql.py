"""Reads the panels and rules of ops/ as PromQL."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

OPS = Path(__file__).parents[2] / "ops"
DASHBOARDS = sorted((OPS / "grafana" / "dashboards").glob("*.json"))


def panels(dashboard: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return found


def queries(dashboard: Path) -> Iterator[tuple[str, str]]:
    """Title of the panel and query, variables as yet in it."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def rules() -> list[dict[str, Any]]:
    files = sorted((OPS / "prometheus" / "rules").glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """Names of the service's own metrics in it; those of recording rules have colons."""
    return set(re.findall(r"(?<![\w:])(vlm2rec_\w+|process_\w+)(?![\w:])", re.sub(r'"[^"]*"', '""', expression)))
