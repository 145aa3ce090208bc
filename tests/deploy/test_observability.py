"""Prometheus and Grafana: no panel is dead, no rule is blind, and each alert fires when it should.

The live half runs the shipped configuration in the real Prometheus, over the real gateway and the
real Triton server, and asks for every expression that stands in a dashboard or a rule.
"""

import asyncio
import math
import re
import shutil
import subprocess
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import service.server  # noqa: F401 and with it all that can refuse, which metrics count by reason
from service.observability.metrics import Metrics, ModelMetrics
from tests.bundles import FOR_EVER, write_bundle
from tests.deploy.observed import drive, exposing, prometheus
from tests.deploy.promql import alternatives, conditions, names, operands
from tests.deploy.shipped import (
    ALERTS,
    DASHBOARDS,
    EXPRESSIONS,
    PANELS,
    PROMETHEUS,
    RECORDED,
    ROOT,
    RULE_TESTS,
    RULES,
    TARGETS,
    provisioned,
    variables,
)
from tests.service.test_process import serving
from tests.service.triton import triton_over
from tests.service.waiting import until

OF_PROMETHEUS = {"up", "ALERTS"}
# What a Triton server shows of its GPU beside the rest: names and label were seen on an H200 (on
# 2026-11-27, by the real server); the values are made up. Here there is no GPU, so a server of the
# tests' own shows this text.
GPU_METRICS = (Path(__file__).parent / "gpu_metrics.txt").read_text()
OF_A_GPU = {
    sample.name.removesuffix("_total")  # which the parser gives counters
    for family in text_string_to_metric_families(GPU_METRICS)
    for sample in family.samples
}
OF_TRITON = {
    *(f"nv_inference_{name}_duration_us" for name in ("request", "queue")),
    *(f"nv_inference_compute_{name}_duration_us" for name in ("input", "infer", "output")),
    *(f"nv_inference_{name}" for name in ("count", "exec_count", "pending_request_count")),
    *(f"nv_inference_request_{name}" for name in ("success", "failure")),
    *(f"nv_cpu_{name}" for name in ("utilization", "memory_used_bytes", "memory_total_bytes")),
}

# A dozen failed requests, where little else is asked, fire these at once.
CAUSED = {"SidErrorsFast", "SidErrorsSlow"}

# The objective names 502 too, which the gateway itself never answers.
SELECTORS = sorted(
    one for one in set().union(*map(alternatives, EXPRESSIONS)) if '"502"' not in one
)

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)


# Rules.


@needs_prometheus
def test_prometheus_accepts_the_configuration():
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.long] if path.stem == "slo-days" else []
        )
        for path in RULE_TESTS
    ],
)
def test_alerts_fire_when_they_should_and_only_then(path):
    promtool("test", "rules", str(path))


def test_where_the_runbooks_lie_is_a_variable_with_a_default():
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert config["global"]["external_labels"] == {"runbooks": "${RUNBOOKS}"}
    stack = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    environment = stack["services"]["prometheus"]["environment"]
    assert environment == {"RUNBOOKS": "${RUNBOOKS:-docs}"}


def test_every_alert_is_tried_firing_and_silent():
    tried = Counter(
        (case["alertname"], bool(case.get("exp_alerts")))
        for path in RULE_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
    )
    for alert in ALERTS:
        for firing in (True, False):
            assert tried[alert.values[0]["alert"], firing], (alert.id, firing)


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule):
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert "{{ $value" in rule["annotations"]["description"]
    folder, _, rest = rule["annotations"]["runbook"].partition("/")
    assert folder == "{{ $externalLabels.runbooks }}"
    page, _, anchor = f"docs/{rest}".partition("#")
    assert anchor == rule["alert"].lower()
    if not (ROOT / page).exists():
        pytest.skip(f"{page} is not written yet")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.M)
    assert anchor in [heading.lower() for heading in headings], f"{page} does not explain it"


# Dashboards.


def test_what_is_provisioned_is_what_the_dashboards_ask():
    (source,) = provisioned("datasources/prometheus.yml")["datasources"]
    (provider,) = provisioned("dashboards/sid.yml")["providers"]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    used = {panel["datasource"]["uid"] for (panel,) in (one.values for one in PANELS)}
    used |= {one["datasource"]["uid"] for board in DASHBOARDS.values() for one in variables(board)}
    assert used == {source["uid"]}


def test_dashboards_lead_to_each_other():
    assert set(DASHBOARDS) == {"health", "latency", "triton"}
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    for board in DASHBOARDS.values():
        (link,) = board["links"]
        assert link["type"] == "dashboards"
        assert set(link["tags"]) <= set(board["tags"])


@pytest.mark.parametrize("board", DASHBOARDS.values(), ids=DASHBOARDS)
def test_panels_lie_side_by_side(board):
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one['title']} lies over {other['title']}"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_in_a_sentence_what_it_shows(panel):
    sentence = panel["description"]
    assert sentence[0].isupper() or sentence[0].isdigit() or sentence.startswith("idle:")
    assert sentence.endswith(".")
    assert len(sentence.split()) > 8
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_metric_is_one_that_somebody_has(expr):
    recorded = {one.values[0]["record"] for one in RECORDED}
    assert names(expr)
    assert names(expr) <= of_gateway() | OF_TRITON | OF_A_GPU | OF_PROMETHEUS | recorded


def test_what_a_gpu_shows_is_on_a_panel_or_in_an_alert():
    assert {
        *(f"nv_gpu_{name}" for name in ("utilization", "power_usage", "power_limit")),
        *(f"nv_gpu_memory_{name}_bytes" for name in ("total", "used")),
        "nv_energy_consumption",
    } == OF_A_GPU
    assert set().union(*map(names, EXPRESSIONS)) >= OF_A_GPU


def test_everything_recorded_is_used():
    recorded = {one.values[0]["record"] for one in RECORDED}
    assert recorded <= set().union(*map(names, EXPRESSIONS))


# The real thing.


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Prometheus after a gateway of each engine has answered in every way."""
    models, repository = (tmp_path_factory.mktemp(name) for name in ("models", "repository"))
    write_bundle(models)
    write_bundle(models, "stuck", turns=FOR_EVER)
    write_bundle(repository)
    small = {"SID_CONCURRENCY": "2", "SID_MAX_BATCH_SIZE": "4", "SID_QUEUE_SIZE": "16"}
    logs = [tmp_path_factory.mktemp("logs") / name for name in ("embedded", "triton")]
    with (
        triton_over(repository) as triton,
        serving(models, log=logs[0], SID_ENGINE_SECONDS="1", **small) as (_, embedded),
        serving(repository, log=logs[1], SID_TRITON=triton.address) as (_, over_triton),
        exposing(GPU_METRICS) as gpu,
        prometheus(
            tmp_path_factory.mktemp("prometheus"),
            {
                "sid": [url.removeprefix("http://") for url in (embedded, over_triton)],
                "triton": [f"127.0.0.1:{triton.metrics}", gpu],
            },
        ) as server,
    ):
        # From the first scrape on, so that rates begin at 0.
        until(lambda: server.values("count(up == 1)") == [4])
        server.statuses = drive(embedded, over_triton)
        # A few evaluations: what is recorded is there too, and alerts saw it.
        until(lambda: firing(server) >= CAUSED)
        yield server


@pytest.mark.slow
@needs_prometheus
def test_prometheus_counts_every_answer_that_clients_got(live):
    """And the first of each kind, because all of them were at 0 before."""
    assert set(live.statuses) == {"200", "304", "422", "429", "499", "503", "504"}
    answers = 'sum by (status) ({}(sid_requests_total{{route="/generate"}}{})) > 0'
    until(lambda: by_status(live, answers.format("", "")) == live.statuses)
    assert set(by_status(live, answers.format("increase", "[1h]"))) == set(live.statuses)


@pytest.mark.slow
@needs_prometheus
def test_prometheus_reads_every_target_and_evaluates_every_rule(live):
    targets = live.ask("targets")["activeTargets"]
    assert Counter(one["labels"]["job"] for one in targets) == {"sid": 2, "triton": 2}
    assert {one["lastError"] for one in targets} == {""}
    rules = [rule for group in live.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [rule for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.slow
@needs_prometheus
def test_an_engine_that_fails_pages_somebody(live):
    assert firing(live) == CAUSED


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize(("name", "expr"), TARGETS)
def test_no_panel_is_dead(live, name, expr):
    for variable in variables(DASHBOARDS[name]):
        expr = expr.replace(f"${variable['name']}", "|".join(choices(live, variable)))
    expr = expr.replace("$__rate_interval", "5m")
    assert "$" not in expr
    for part in (expr, *operands(expr)):
        returns_data(live, part)


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("rule", RECORDED)
def test_no_recording_is_dead(live, rule):
    returns_data(live, rule["expr"])
    labels = ",".join(f'{name}="{value}"' for name, value in rule.get("labels", {}).items())
    returns_data(live, f"{rule['record']}{{{labels}}}")


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("rule", ALERTS)
def test_no_alert_is_blind(live, rule):
    """What it compares is there, each side by itself and, for `and`, under the same labels."""
    assert operands(rule["expr"])
    for expr in (*operands(rule["expr"]), *conditions(rule["expr"])):
        returns_data(live, expr)


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("selector", SELECTORS)
def test_no_matcher_looks_for_what_never_was(live, selector):
    returns_data(live, selector)


@pytest.mark.slow
@needs_prometheus
def test_triton_names_its_metrics_as_we_do(live):
    found = live.ask("label/__name__/values", **{"match[]": '{job="triton"}'})
    assert set(found) >= OF_TRITON | OF_A_GPU


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def choices(live, variable: dict) -> list[str]:
    """What Grafana would offer for a variable, by its own query."""
    metric, label = re.fullmatch(
        r"label_values\((.*), (\w+)\)", variable["query"]["query"]
    ).groups()
    found = live.ask(f"label/{label}/values", **{"match[]": metric})
    assert found, f"{variable['name']} has nothing to choose from"
    return found


def returns_data(live, expr: str) -> None:
    values = live.values(expr)
    assert values, f"returns nothing: {expr}"
    assert not any(map(math.isnan, values)), f"returns {values}: {expr}"


def by_status(live, expr: str) -> dict[str, float]:
    found = live.ask("query", query=expr)["result"]
    return {sample["metric"]["status"]: float(sample["value"][1]) for sample in found}


def firing(live) -> set[str]:
    found = live.ask("query", query='ALERTS{alertstate="firing"}')["result"]
    return {sample["metric"]["alertname"] for sample in found}


def of_gateway() -> set[str]:
    """The names of the samples that a gateway shows, without one."""
    server_metrics = Metrics()
    model_metrics = ModelMetrics(server_metrics, "tiny")
    model_metrics.show_engines({"cpu:0": True}, 2)

    families = text_string_to_metric_families(asyncio.run(server_metrics.exposition()).decode())
    return {sample.name for family in families for sample in family.samples} | OF_A_MODEL


# Shown once a model is opened, which needs its bundle.
OF_A_MODEL = {"sid_model_info", "sid_queue_depth"}
