"""The dashboards and rules that are shipped, read once and ready to parametrize tests with."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in (GRAFANA / "dashboards").iterdir()
}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
TARGETS = [
    pytest.param(name, target["expr"], id=f"{name}-{panel['title']}-{target['refId']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel.get("targets", ())
]
RULES = [
    rule
    for path in sorted((PROMETHEUS / "rules").iterdir())
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [pytest.param(rule, id=rule["alert"]) for rule in RULES if "alert" in rule]
RECORDED = [
    pytest.param(rule, id="-".join([rule["record"], *rule.get("labels", {}).values()]))
    for rule in RULES
    if "record" in rule
]
EXPRESSIONS = sorted({one.values[1] for one in TARGETS} | {rule["expr"] for rule in RULES})
RULE_TESTS = sorted((PROMETHEUS / "tests").iterdir())


def provisioned(path: str) -> dict[str, Any]:
    """A file of what Grafana is provisioned with."""
    return yaml.safe_load((GRAFANA / "provisioning" / path).read_text())


def variables(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The template variables of a dashboard."""
    return board["templating"]["list"]
