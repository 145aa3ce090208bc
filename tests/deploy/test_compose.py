"""The compose file: valid for the real docker-compose, safe as it comes, naming what exists."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml

from distill.export.triton_gpu import ENGINE_CACHE
from service.settings import Settings
from service.tools import triton_server
from tests.deploy.files import (
    DOCKERFILE,
    ENV,
    HEALTHCHECK,
    ROOT,
    SERVICES,
    STACK,
    docker_compose,
    lines,
    said,
)

FIELDS = Settings.model_fields
GATEWAYS = {"gateway", "gateway-triton", "gateway-gpu"}
TRITONS = {"triton", "triton-gpu"}
WATCHERS = {"prometheus", "grafana"}
STARTED = {  # by each profile; None is plain `docker compose up`
    None: {"gateway", *WATCHERS},
    "triton": {"gateway-triton", "triton", *WATCHERS},
    "gpu": {"gateway-gpu", "triton-gpu", *WATCHERS},
}
FROM = {rest.split()[0] for rest in said("FROM", DOCKERFILE)}
GPU_IMAGE = SERVICES["triton-gpu"]["build"]["dockerfile_inline"].splitlines()
BUILT = {"sid-serve:local", "sid-serve-triton:25.06"}  # here
FROM.add(GPU_IMAGE[0].removeprefix("FROM "))


def loaded(name):
    return yaml.safe_load((ROOT / "deploy" / name).read_text())


# As docker-compose reads it


@pytest.fixture(scope="module")
def started():
    """What docker-compose would start with a profile, and with further variables."""
    command = [*docker_compose(), "--file", ROOT / "docker-compose.yml"]

    def model(profile, **environment):
        options = ["--profile", profile] if profile else []
        done = subprocess.run(
            [*command, *options, "config", "--format", "json"],
            env={"PATH": os.environ["PATH"], "HOME": str(Path.home())} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "level=warning" not in done.stderr
        return json.loads(done.stdout)["services"]

    return model


@pytest.mark.parametrize("profile", STARTED)
def test_a_profile_starts_one_gateway_and_what_it_needs(started, profile):
    services = started(profile)
    assert set(services) == STARTED[profile]
    answering = {}
    for name, spec in services.items():
        for known in {name, *(spec["networks"]["default"] or {}).get("aliases", [])}:
            answering.setdefault(known, set()).add(name)
    # Prometheus and the gateway ask for these names, whichever service is behind them.
    assert answering["gateway"] == GATEWAYS & set(services)
    assert answering.get("triton", set()) == TRITONS & set(services)
    (gateway,) = answering["gateway"]
    assert ("SID_TRITON" in services[gateway].get("environment", {})) == (profile is not None)


@pytest.mark.parametrize("profile", STARTED)
def test_one_variable_opens_the_ports_which_are_closed_without(started, profile):
    for environment, address in ({}, "127.0.0.1"), ({"BIND_ADDRESS": "0.0.0.0"}, "0.0.0.0"):
        services = started(profile, **environment).values()
        ports = [port for spec in services for port in spec.get("ports", [])]
        assert {port["target"] for port in ports} == {8000, 9090, 3000}
        assert {port["host_ip"] for port in ports} == {address}


@pytest.mark.parametrize("profile", STARTED)
def test_only_the_profile_gpu_asks_for_a_gpu(started, profile):
    services = started(profile)
    asking = {n for n, spec in services.items() if "reservations" in spec["deploy"]["resources"]}
    assert asking == ({"triton-gpu"} if profile == "gpu" else set())


def test_the_default_profile_is_the_embedded_engine():
    assert lines(".env") == ["COMPOSE_PROFILES=embedded"]
    assert SERVICES["gateway"]["profiles"] == ["embedded"]


# Every service


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name):
    spec = SERVICES[name]
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert set(spec["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert spec["logging"]["options"]["max-size"]
    assert spec["restart"] == "unless-stopped"
    assert "privileged" not in spec
    for mount in spec["volumes"]:
        source, _, rest = mount.partition(":")
        assert rest.endswith(":ro") if source.startswith(".") else source in STACK["volumes"], mount


@pytest.mark.parametrize("image", sorted({*FROM, *(spec["image"] for spec in SERVICES.values())}))
def test_an_image_has_an_exact_tag(image):
    if image in BUILT:
        return
    repository, _, tag = image.partition(":")
    assert re.fullmatch(r"[a-z./]+", repository)
    assert re.search(r"\d+\.\d+", tag), f"{image} may change under us"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_the_health_of_what_it_needs(name):
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert SERVICES[needed]["healthcheck"]["test"][0] == "CMD"
    needs = {"gateway-triton": {"triton"}, "gateway-gpu": {"triton-gpu"}, "grafana": {"prometheus"}}
    assert set(SERVICES[name].get("depends_on", {})) == needs.get(name, set())


def test_there_is_no_password_and_grafana_asks_nothing_of_the_internet():
    for env in [ENV, *(spec.get("environment", {}) for spec in SERVICES.values())]:
        assert not [key for key in env if re.search(r"PASSWORD|SECRET|TOKEN|KEYS?$", key)]
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for key in ("SECURITY_DISABLE_INITIAL_ADMIN_CREATION", "AUTH_DISABLE_LOGIN_FORM"):
        assert grafana[f"GF_{key}"] == "true"
    for key in ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES"):
        assert grafana[f"GF_ANALYTICS_{key}"] == "false"


@pytest.mark.parametrize("name", sorted(GATEWAYS))
def test_a_gateway_may_finish_what_it_accepted(name):
    given = SERVICES[name].get("environment", {})
    asked = [
        float(given.get(f"SID_{field.upper()}", FIELDS[field].default))
        for field in ("drain_seconds", "grace_seconds")
    ]
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > sum(asked)


# What is named exists


def test_commands_in_the_documents_name_a_service_of_their_profile():
    """Compose says "no such service", or nothing, to one of another profile."""
    told = []
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for profile, rest in re.findall(
            r"docker compose(?: --profile ([a-z]+))? "
            r"(?:logs|exec|restart|stop|kill -s HUP) ([^\n`|#)]*)",
            page.read_text(),
        ):
            (service,) = [word for word in rest.split() if word in SERVICES][:1] or [rest]
            assert service in STARTED[profile or None], f"{page.name}: {profile} {service}"
            told.append(profile)
    assert {"", "triton", "gpu"} <= set(told)


def test_commands_in_what_the_programs_say_start_a_profile(started):
    """`docker compose --profile triton up`, as an error says it."""
    said = [
        " ".join(node.value.split())
        for half in ("service", "distill")
        for file in (ROOT / half).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    told = [words for text in said for words in re.findall(r"docker compose ([^`']*)", text)]
    assert told
    for words in told:
        profile, command = re.fullmatch(r"(?:--profile ([a-z]+) )?([a-z]+)", words).groups()
        assert command == "up", words
        assert set(started(profile)) == STARTED[profile]


def test_mounts_and_the_paths_under_them_exist():
    for name, spec in SERVICES.items():
        mounts = dict(mount.split(":")[1::-1] for mount in spec["volumes"])
        for source in mounts.values():
            assert not source.startswith(".") or (ROOT / source).is_dir(), source
        words = [*spec.get("command", []), *spec.get("environment", {}).values()]
        for path in [word.split("=")[-1] for word in words if re.match(r"(--[a-z.-]+=)?/", word)]:
            target = next((t for t in mounts if f"{path}/".startswith(f"{t}/")), None)
            assert target, f"{name}: nothing is mounted at {path}"
            if mounts[target].startswith("."):
                assert (ROOT / mounts[target] / path.removeprefix(target).lstrip("/")).exists()
        if name in GATEWAYS:
            assert list(mounts) == [ENV["SID_MODELS"]]
    (provider,) = loaded("grafana/provisioning/dashboards/sid.yml")["providers"]
    path = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{path}:ro" in SERVICES["grafana"]["volumes"]


@pytest.mark.parametrize("name", sorted(GATEWAYS))
def test_a_gateways_settings_exist_and_are_valid(name):
    given = SERVICES[name].get("environment", {})
    ours = {key.removeprefix("SID_").lower(): value for key, value in given.items()}
    assert set(ours) <= set(FIELDS)
    assert Settings(**ours)


def test_ports_and_names_agree():
    port = FIELDS["port"].default
    assert said("EXPOSE") == [str(port)]
    assert f"'SID_PORT', '{port}'" in HEALTHCHECK[-1]
    for name in GATEWAYS:
        assert SERVICES[name]["ports"] == [f"${{BIND_ADDRESS:-127.0.0.1}}:{port}:{port}"]
    # Triton's own: 8000 is HTTP, 8001 gRPC, 8002 metrics.
    assert SERVICES["gateway-triton"]["environment"] == {"SID_TRITON": "triton:8001"}
    assert "http://127.0.0.1:8000/v2/health/ready" in SERVICES["triton"]["healthcheck"]["test"]
    jobs = loaded("prometheus/prometheus.yml")["scrape_configs"]
    found = [found for job in jobs for found in job["dns_sd_configs"]]
    scraped = {(name, entry["port"]) for entry in found for name in entry["names"]}
    assert scraped == {("gateway", port), ("triton", 8002)}
    (source,) = loaded("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_a_gpu_computes_float32_as_float32():
    """TensorRT and CUDA's libraries ask the environment; the rest is in config.pbtxt."""
    assert SERVICES["triton-gpu"]["environment"] == {"NVIDIA_TF32_OVERRIDE": "0"}


def test_triton_on_a_gpu_has_a_tensorrt_that_reads_the_graphs_and_may_write_its_cache():
    release = re.fullmatch(r"FROM nvcr.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", GPU_IMAGE[0])
    assert tuple(map(int, release.groups())) >= (25, 3), "the first with TensorRT 10.9"
    spec = SERVICES["triton-gpu"]
    assert spec["user"] == "1000:1000"
    assert f"triton-cache:{ENGINE_CACHE}" in spec["volumes"]
    assert GPU_IMAGE[-1] == f"RUN install --directory --owner=1000 --group=1000 {ENGINE_CACHE}"
    assert spec["image"].partition(":")[2] == ".".join(release.groups())


@pytest.mark.parametrize("name", sorted(TRITONS))
def test_triton_has_these_options(name):
    triton_server.install()
    packages = Path(str(distribution("nvidia-pytriton").locate_file("")))
    shown = subprocess.run(
        [packages / "pytriton/tritonserver/bin/tritonserver", "--help"],
        env={"LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{sys.base_prefix}/lib"},
        capture_output=True,
        text=True,
        check=False,
    )
    program, *options = SERVICES[name]["command"]
    assert program == "tritonserver"
    for option in options:
        assert f" {option.partition('=')[0]} <" in shown.stdout + shown.stderr
