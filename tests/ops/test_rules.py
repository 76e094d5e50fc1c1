"""Rules and panels ask for what exists; every rule is tested by promtool, every alert has a section of the runbook."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from service.telemetry.metrics import Metrics
from tests.support.promql import DASHBOARDS, OPS, metrics_of, panels, queries, rules

RUNBOOK = OPS.parent / "docs" / "operating.md"
TESTS = sorted((OPS / "prometheus" / "tests").glob("*.yml"))
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in rules() if "record" in rule}


def exposed() -> set[str]:
    """Every name that a scrape can hold."""
    names = set()
    for collector in Metrics()._registry._collector_to_names:
        for family in collector.collect():
            ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            names |= {family.name + end for end in ends}
    return names


def test_everything_that_is_asked_for_exists() -> None:
    asked = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    asked += [query for dashboard in DASHBOARDS for query in queries(dashboard)]
    assert len(asked) > 80
    missing = {(who, name) for who, expression in asked for name in metrics_of(expression) - exposed()}
    assert missing == set()


def test_records_that_are_asked_for_exist() -> None:
    asked = {name for rule in rules() for name in re.findall(r"\w+:\w+:\w+", rule["expr"])}
    assert asked
    assert asked <= set(RECORDS)


def test_every_alert_has_its_section_and_words() -> None:
    headings = {line.removeprefix("### ") for line in RUNBOOK.read_text().splitlines() if line.startswith("### ")}
    for name, rule in ALERTS.items():
        assert name in headings, name
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{name.lower()}"
        assert rule["annotations"]["summary"].endswith((".", "answers."))
        assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {heading for heading in headings if heading.startswith("Vlm2rec")} == set(ALERTS)


def test_every_rule_is_tested() -> None:
    cases = [case for file in TESTS for case in yaml.safe_load(file.read_text())["tests"]]
    alerts = [alert for case in cases for alert in case.get("alert_rule_test", [])]
    silent = {alert["alertname"] for alert in alerts if not alert["exp_alerts"]}
    firing = {alert["alertname"] for alert in alerts if alert["exp_alerts"]}
    assert silent == firing == set(ALERTS)
    expressions = " ".join(expr["expr"] for case in cases for expr in case.get("promql_expr_test", []))
    assert {name for name in RECORDS if name in expressions} == set(RECORDS)


@pytest.mark.program("promtool")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules")])
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    files = [str(file) for file in TESTS] if arguments[0] == "test" else []
    ran = subprocess.run(
        ["promtool", *arguments, *files], cwd=OPS / "prometheus", capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(dashboard: Path) -> None:
    shown = panels(dashboard)
    assert len({panel["id"] for panel in shown}) == len({panel["title"] for panel in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        defaults, place = panel["fieldConfig"]["defaults"], panel["gridPos"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0] == {"color": "green", "value": None}
        cells = {(place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])}
        assert max(column for column, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "prometheus"}
            assert "$instance" in target["expr"] or "ALERTS" in target["expr"]
            assert len(target["legendFormat"]) > 1


def test_the_data_source_of_the_panels_is_provisioned() -> None:
    provisioning = OPS / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    interval = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "vlm2rec.yml").read_text())["providers"]
    compose = yaml.safe_load((OPS.parent / "docker-compose.yml").read_text())
    assert f"./ops/grafana/dashboards:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]
