"""The chart: valid for Helm and Kubernetes, safe as it comes, naming only what exists."""

import json
import re
import shutil
import subprocess
import tarfile
from importlib.util import find_spec

import pytest
import yaml

from distill.export.triton_gpu import ENGINE_CACHE
from service.http.routes import health
from service.settings import Settings
from tests.deploy.chart import CHART, NAMESPACE, RELEASE, WAYS, Rendered, rendered, settings, values
from tests.deploy.files import ENV, PYPROJECT, SERVICES, said
from tests.deploy.promql import names
from tests.deploy.shipped import DASHBOARDS, PROMETHEUS
from tests.deploy.test_observability import (
    OF_A_GPU,
    OF_TRITON,
    RECORDED,
    needs_prometheus,
    of_gateway,
    promtool,
)

pytestmark = pytest.mark.skipif(
    find_spec("helm_python") is None, reason="Helm is not installed (pip install helm-python-sdk)"
)
every_way = pytest.mark.parametrize("way", WAYS)
EXIST = of_gateway() | OF_TRITON | OF_A_GPU | {one.values[0]["record"] for one in RECORDED}
OF_OPERATORS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
SUPPORTED = (
    "1.31",
    "1.37",
)  # the oldest that Chart.yaml allows, and the newest there is a schema of


# As Helm and Kubernetes read it


@every_way
def test_helm_finds_nothing_to_complain_of(way):
    from helm_python.chart import lint

    report = lint(CHART, values(way), strict=True, kube_version=f"v{SUPPORTED[0]}.0")
    assert [one for one in report["messages"] if one["severity"] > 1] == []
    assert report["errors"] == []


@every_way
@pytest.mark.parametrize("version", SUPPORTED)
def test_kubernetes_has_every_field(way, version):
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="schemas are missing (pip install kubernetes-validate)"
    )
    for manifest in rendered(way).manifests:
        if manifest["kind"] not in OF_OPERATORS:
            assert schemas.validate(manifest, version, strict=True) == version
            assert manifest["metadata"]["namespace"] == NAMESPACE


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hpa", "keda", "triton-gpu-keda"])
def test_the_operators_have_every_field(way):
    reason = "models are missing (pip install cloudcoil-models-keda ...-prometheus-operator)"
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1", reason=reason)
    prometheus = pytest.importorskip("cloudcoil.models.prometheus_operator.v1", reason=reason)
    for manifest in rendered(way).manifests:
        if manifest["kind"] in OF_OPERATORS:
            of = keda if manifest["kind"] == "ScaledObject" else prometheus
            read = getattr(of, manifest["kind"]).model_validate(manifest)
            # What a model does not know it leaves out.
            known = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert known["spec"] == manifest["spec"]


def test_it_is_of_this_release_and_packages_with_what_its_links_lead_to(tmp_path):
    from helm_python import Chart

    with Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == PYPROJECT["project"]["version"]
        assert chart.metadata["kubeVersion"] == f">={SUPPORTED[0]}.0-0"
        packed = chart.save(tmp_path)
    with tarfile.open(packed) as archive:
        held = {one.name: one.isfile() for one in archive}
    shipped = [*(PROMETHEUS / "rules").iterdir()]
    for path in shipped:
        assert held[f"sid-serve/files/rules/{path.name}"]
    for name in DASHBOARDS:
        assert held[f"sid-serve/files/dashboards/{name}.json"]


def test_a_release_whose_name_is_too_long_is_refused_in_one_line():
    from helm_python import Chart
    from helm_python.errors import HelmRenderError

    with Chart.load(CHART) as chart, pytest.raises(HelmRenderError, match="name is too long: "):
        chart.render({}, name="s" * 53, namespace=NAMESPACE)


# Safety


@every_way
def test_pods_are_confined_as_in_compose(way):
    for deployment in rendered(way).kind("Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        user = said("USER")[-1] if "gateway" in deployment["metadata"]["name"] else "1000:1000"
        security = pod["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == user
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["serviceAccountName"] == f"{RELEASE}-pods"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [one for one in pod["volumes"] if "hostPath" in one]
    for container in rendered(way).containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        mounts = {one["name"]: one for one in container["volumeMounts"]}
        assert "tmp" in mounts
        if container["name"] != "models":  # which fills the folder
            assert mounts.get("models", {"readOnly": True})["readOnly"] is True


@every_way
def test_what_is_mounted_is_a_volume_and_each_volume_is_mounted(way):
    for deployment in rendered(way).kind("Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        mounted = {
            mount["name"]
            for container in (*pod.get("initContainers", []), *pod["containers"])
            for mount in container["volumeMounts"]
        }
        assert mounted == {one["name"] for one in pod["volumes"]}


@every_way
def test_each_part_has_a_budget_and_is_spread_over_nodes_and_zones(way):
    chart = rendered(way)
    for deployment in chart.kind("Deployment"):
        part = deployment["metadata"]["name"].removeprefix(f"{RELEASE}-")
        selector = deployment["spec"]["selector"]
        assert selector["matchLabels"].items() <= _labels(deployment).items()
        budget = chart.one("PodDisruptionBudget", part)["spec"]
        assert (budget["selector"], budget["maxUnavailable"]) == (selector, 1)
        spread = chart.pod(part)["topologySpreadConstraints"]
        assert [one["topologyKey"].rpartition("/")[2] for one in spread] == ["hostname", "zone"]
        assert all(one["labelSelector"] == selector for one in spread)
        assert chart.one("NetworkPolicy", part)["spec"]["podSelector"] == selector


@every_way
def test_the_network_lets_through_what_the_parts_need_of_each_other(way):
    chart = rendered(way)
    policies = {one["metadata"]["name"]: one["spec"] for one in chart.kind("NetworkPolicy")}
    gateway = policies["sid-gateway"]
    assert [_ports(rule) for rule in gateway["ingress"]] == [{8000}, {9100}]
    assert "from" in gateway["ingress"][1]
    reached = [port for rule in gateway["egress"] for port in _ports(rule)]
    assert reached[0] == 53
    if "sid-triton" in policies:
        grpc, metrics = policies["sid-triton"]["ingress"]
        address = settings(chart.pod("gateway")["containers"][0])["triton"]
        assert _ports(grpc) == {int(address.rpartition(":")[2])} <= set(reached)
        (allowed,) = grpc["from"]
        labels = _labels(chart.one("Deployment", "gateway"))
        assert allowed["podSelector"]["matchLabels"].items() <= labels.items()
        assert _ports(metrics) == {8002}
        # It asks nobody for anything: but for names, and for its bundles.
        rest = {port for rule in policies["sid-triton"]["egress"] for port in _ports(rule)}
        assert rest == ({53, 443, 8080} if way == "models-bundles" else {53})
    if way == "all-else":
        assert {4317, 443} <= set(reached)
        assert gateway["ingress"][0]["from"] == values(way)["networkPolicy"]["clients"]


# Checks of checkov that stay open, each with its reason.
OPEN_CHECKS = {
    "CKV_K8S_43": "digests are the installer's to state: gateway.image.digest, triton.image.digest",
    "CKV_K8S_15": "IfNotPresent: a node that cannot reach the registry still starts its pods",
    "CKV_K8S_40": "1000 is the user of NVIDIA's image; ours is above 10000",
}


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("checkov") is None,
    reason="checkov is not on the PATH (pip install checkov, in an environment of its own)",
)
def test_checkov_finds_nothing_but_what_is_explained(tmp_path):
    for way in WAYS:
        (tmp_path / f"{way}.yaml").write_text(yaml.safe_dump_all(rendered(way).manifests))
    skipped = ["--skip-check", ",".join(OPEN_CHECKS)]
    options = ["--framework", "kubernetes", "--compact", "--quiet", "--skip-download"]
    done = subprocess.run(
        ["checkov", "--directory", tmp_path, *options, *skipped],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# An orderly end


@every_way
def test_a_pod_has_the_time_that_its_end_takes(way):
    chart = rendered(way)
    gateway = chart.pod("gateway")
    (container,) = gateway["containers"]
    given = Settings(**settings(container))
    sleeps = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    takes = sleeps + given.drain_seconds + given.grace_seconds
    assert gateway["terminationGracePeriodSeconds"] > takes
    assert min(sleeps, given.drain_seconds) > 0
    if chart.kind("Deployment")[1:]:
        triton = chart.pod("triton")
        (container,) = triton["containers"]
        options = dict(one.split("=") for one in container["command"] if "=" in one)
        sleeps = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        takes = sleeps + int(options["--exit-timeout-secs"])
        assert triton["terminationGracePeriodSeconds"] > takes
        # Connections of gateways have come to their age, and found others, before SIGTERM.
        assert sleeps * 1000 > int(options["--grpc-max-connection-age"])


@every_way
def test_none_goes_before_another_has_come_but_where_all_cards_are_taken(way):
    for deployment in rendered(way).kind("Deployment"):
        strategy = deployment["spec"]["strategy"]["rollingUpdate"]
        limits = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpu = "nvidia.com/gpu" in limits
        assert (strategy["maxSurge"], strategy["maxUnavailable"]) == ((0, 1) if gpu else (1, 0))


@pytest.mark.parametrize("way", [way for way in WAYS if re.search("hpa|keda", way)])
def test_autoscaling_goes_by_what_limits_us_and_down_one_by_one(way):
    chart = rendered(way)
    part = "triton" if "triton" in way else "gateway"
    if way.endswith("hpa"):
        spec = chart.one("HorizontalPodAutoscaler", part)["spec"]
        asked = {one["pods"]["metric"]["name"] for one in spec["metrics"]}
        assert asked <= {rule["name"]["as"] for rule in adapter()}
        behavior = spec["behavior"]
    else:
        spec = chart.one("ScaledObject", part)["spec"]
        asked = set().union(*(names(one["metadata"]["query"]) for one in spec["triggers"]))
        assert asked <= EXIST
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert asked
    assert not [name for name in asked if "cpu" in name]
    assert spec["scaleTargetRef"]["name"] == f"{RELEASE}-{part}"
    assert "replicas" not in chart.one("Deployment", part)["spec"]
    down = behavior["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 60
    # One may end while the next one is chosen, and each has the time of the test above.
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 60}]


def test_the_adapter_shows_what_exists():
    for rule in adapter():
        series = names(rule["seriesQuery"])
        assert len(series) == 1
        assert series <= EXIST
        assert {"namespace", "pod"} == set(rule["resources"]["overrides"])


# As the operator's Prometheus labels them: two gateways of two models each, one of them half idle
# (a slot of two in use), and two Triton servers, each with a card.
SERIES = {
    "sid_queue_depth": {("gateway", 1, "a"): 6, ("gateway", 1, "b"): 2, ("gateway", 2, "a"): 0},
    "sid_engine_places": {("gateway", 1, "a"): 2, ("gateway", 1, "b"): 2, ("gateway", 2, "a"): 2},
    "nv_inference_pending_request_count": {("triton", 1, "a"): 3, ("triton", 2, "a"): 5},
    "nv_gpu_utilization": {("triton", 1, "a"): 0.5, ("triton", 2, "a"): 0.9},
}
BUSY = {("gateway", 1, "a"): 120, ("gateway", 1, "b"): 30, ("gateway", 2, "a"): 60}  # s a minute
SHOWN = {  # the sum over pods, which KEDA asks for, and each pod's, which the adapter shows
    "sid_queue_depth": {1: 8, 2: 0},
    "sid_engine_used": {1: 1, 2: 0.5},
    "nv_inference_pending_request_count": {1: 3, 2: 5},
    "nv_gpu_utilization": {1: 0.5, 2: 0.9},
}


@needs_prometheus
def test_prometheus_answers_what_the_autoscalers_ask(tmp_path):
    """The recorded rules too, under the labels that the operator's Prometheus gives all metrics."""

    def labels(part, number, model):
        job = "sid" if part == "gateway" else part
        pod = f'pod="{RELEASE}-{part}-{number}",container="{part}",endpoint="metrics"'
        return (
            f'job="{job}",instance="10.0.0.{number}",namespace="{NAMESPACE}",model="{model}",{pod}'
        )

    series = [
        {"series": f"{name}{{{labels(*one)}}}", "values": f"{value}+0x4"}
        for name, by in SERIES.items()
        for one, value in by.items()
    ] + [
        {"series": f'sid_stage_seconds_sum{{stage="engine",{labels(*one)}}}', "values": f"0+{n}x4"}
        for one, n in BUSY.items()
    ]  # fmt: skip
    expected = []
    for rule in adapter():
        name = rule["name"]["as"]
        query = rule["metricsQuery"].replace("<<.Series>>", *names(rule["seriesQuery"]))
        query = query.replace("<<.GroupBy>>", "namespace, pod")
        for pod, value in SHOWN[name].items():
            part = "triton" if name.startswith("nv") else "gateway"
            its = f'namespace="{NAMESPACE}",pod="{RELEASE}-{part}-{pod}"'
            expected.append((query.replace("<<.LabelMatchers>>", its), f"{{{its}}}", value))
    for way in ("keda", "triton-gpu-keda"):
        (scaled,) = rendered(way).kind("ScaledObject")
        for trigger in scaled["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            name = "sid_engine_used" if "sid:" in query else min(names(query))
            expected.append((query, "{}", sum(SHOWN[name].values())))
    assert len(expected) == 12
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {"expr": expr, "eval_time": "4m", "exp_samples": [{"labels": its, "value": value}]}
            for expr, its, value in expected
        ],
    }
    file = tmp_path / "test.yml"
    rules = [str(PROMETHEUS / "rules" / "recording.yml")]
    file.write_text(yaml.safe_dump({"rule_files": rules, "tests": [test]}))
    promtool("test", "rules", str(file))


# What is named exists


@every_way
def test_a_gateways_settings_exist_and_are_valid(way):
    (container,) = rendered(way).pod("gateway")["containers"]
    given = settings(container)
    assert set(given) <= set(Settings.model_fields)
    assert Settings(**given)
    assert set(ENV) & {one["name"] for one in container["env"]} == set()  # the image's own hold
    if "triton" in given:
        assert given["triton"] == f"{RELEASE}-triton.{NAMESPACE}.svc:8001"
        most = 10 if "keda" in way or "hpa" in way else 2
        assert int(given["concurrency"]) == 4 * most
    wanted = values(way).get("gateway", {}).get("settings", {})
    assert wanted.items() <= {one["name"]: one["value"] for one in container["env"]}.items()


@every_way
def test_probes_ask_for_what_answers(way):
    chart = rendered(way)
    ours = {route.path for route in health.router.routes}
    (gateway,) = chart.pod("gateway")["containers"]
    paths = {kind: gateway[f"{kind}Probe"]["httpGet"]["path"] for kind in KINDS}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) <= ours
    # A start that takes long is no reason to end it.
    started = gateway["startupProbe"]
    assert started["periodSeconds"] * started["failureThreshold"] == 300
    if "triton" in way:
        (triton,) = chart.pod("triton")["containers"]
        probes = [triton[f"{kind}Probe"]["httpGet"]["path"] for kind in KINDS]
        assert probes == ["/v2/health/ready", "/v2/health/ready", "/v2/health/live"]
        assert any(probes[0] in word for word in SERVICES["triton"]["healthcheck"]["test"])


KINDS = ("startup", "readiness", "liveness")


@every_way
def test_ports_and_names_agree(way):
    chart = rendered(way)
    opened = {}
    for container in chart.containers():
        ports = {one["name"]: one["containerPort"] for one in container.get("ports", [])}
        opened.setdefault(container["name"], {}).update(ports)
    gateway = Settings(**settings(chart.pod("gateway")["containers"][0]))
    assert opened["gateway"] == {"http": gateway.port, "metrics": gateway.metrics_port}
    assert opened.get("triton", TRITON_PORTS) == TRITON_PORTS
    for service in chart.kind("Service"):
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in opened[component]
    for monitor in chart.kind("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = (
            one for one in chart.kind("Service") if wanted <= one["metadata"]["labels"].items()
        )
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        jobs = {one["job_name"] for one in _scraped()}
        assert {one["replacement"] for one in endpoint["relabelings"]} <= jobs


TRITON_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}


@pytest.mark.parametrize(("way", "service"), [("triton", "triton"), ("triton-gpu", "triton-gpu")])
def test_triton_is_started_as_in_compose(way, service):
    (container,) = rendered(way).pod("triton")["containers"]
    (compose,) = ([*SERVICES[service]["command"]],)
    added = {"--exit-timeout-secs=30", "--grpc-max-connection-age=20000"}
    assert set(container["command"]) == {*compose, *added}
    image = SERVICES[service]["image"]
    if service == "triton-gpu":
        first = SERVICES[service]["build"]["dockerfile_inline"].splitlines()[0]
        image = first.removeprefix("FROM ")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        cache = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}["tensorrt"]
        assert cache == ENGINE_CACHE
        given = {one["name"]: one["value"] for one in container["env"]}
        assert given == SERVICES[service]["environment"]
    assert container["image"] == image


def test_models_come_from_where_the_values_say():
    gateway = rendered("default").pod("gateway")
    assert "models" not in {one["name"] for one in gateway["volumes"]}  # they are in the image
    copying = rendered("triton").pod("triton")["initContainers"][0]
    assert copying["image"] == gateway["containers"][0]["image"]
    assert copying["command"] == ["cp", "-R", f"{ENV['SID_MODELS']}/.", "/filled"]
    for way, part, kind in (
        ("models-image", "gateway", "image"),
        ("models-claim", "gateway", "persistentVolumeClaim"),
        ("models-claim", "triton", "persistentVolumeClaim"),
        ("models-bundles", "gateway", "emptyDir"),
        ("models-bundles", "triton", "emptyDir"),
    ):
        pod = rendered(way).pod(part)
        (volume,) = (one for one in pod["volumes"] if one["name"] == "models")
        assert kind in volume
        mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
        assert mounts["models"] == ENV["SID_MODELS"]
    (fetched,) = (one for one in rendered("models-bundles").kind("ConfigMap"))
    wanted = values("models-bundles")["models"]["bundles"]
    assert json.loads(fetched["data"]["bundles.json"]) == wanted
    script = (CHART / "files" / "fetch_bundles.py").read_text()
    assert fetched["data"]["fetch_bundles.py"] == script


def test_rules_and_dashboards_are_those_of_deploy():
    chart = rendered("hpa")
    groups = [
        group
        for path in sorted((PROMETHEUS / "rules").iterdir())
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    said_where = json.dumps(groups).replace("{{ $externalLabels.runbooks }}", "docs")
    (rule,) = chart.kind("PrometheusRule")
    assert rule["spec"]["groups"] == json.loads(said_where)
    boards = {}
    for board in chart.kind("ConfigMap"):
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        boards |= {key: json.loads(text) for key, text in board["data"].items()}
    assert boards == {f"sid-{name}.json": board for name, board in DASHBOARDS.items()}


def test_the_notes_name_the_service():
    notes = rendered("default").notes
    service = re.search(r"service/(\S+) 8000:(\d+)", notes)
    port = rendered("default").one("Service", "gateway")["spec"]["ports"][0]["port"]
    assert service.groups() == (f"{RELEASE}-gateway", str(port))


# Wrong values


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gateway": {"replicas": "two"}}, "at '/gateway/replicas': got string, want integer"),
        ({"gatway": {}}, "additional properties 'gatway' not allowed"),
        (
            {"gateway": {"settings": {"SID_QUEU_SIZE": "2"}}},
            "at '/gateway/settings': additional properties 'SID_QUEU_SIZE' not allowed",
        ),
        (
            {"gateway": {"settings": {"SID_QUEUE_SIZE": 1000000}}},
            "at '/gateway/settings/SID_QUEUE_SIZE': got number, want string",
        ),
        ({"models": {"source": "claim"}}, "at '/models/claim': minLength: got 0, want 1"),
        ({"models": {"source": "s3"}}, "at '/models/source': value must be one of 'builtin', "),
        ({"autoscaling": {"by": "hpa"}}, "needs metrics: set monitoring.serviceMonitor=true"),
        (
            {"autoscaling": {"by": "keda"}, "monitoring": {"serviceMonitor": True}},
            "set monitoring.prometheusRule=true",
        ),
        (
            {
                "autoscaling": {"by": "hpa", "minReplicas": 20},
                "monitoring": {"serviceMonitor": True, "prometheusRule": True},
            },
            "autoscaling.minReplicas is 20, above autoscaling.maxReplicas, 10",
        ),
    ],
)
def test_a_wrong_value_is_named_in_one_line(wrong, says):
    from helm_python.errors import HelmError

    with pytest.raises(HelmError) as raised:
        Rendered(wrong)
    (line,) = (line for line in str(raised.value).splitlines() if says in line)
    assert len(line) < 200


def adapter():
    """The rules for the Prometheus adapter."""
    return yaml.safe_load((CHART / "prometheus-adapter.yaml").read_text())["rules"]["custom"]


def _labels(deployment):
    return deployment["spec"]["template"]["metadata"]["labels"]


def _ports(rule):
    return {one["port"] for one in rule["ports"]}


def _scraped():
    return yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
