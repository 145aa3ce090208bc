"""Variables SID_* that the server would ignore: refused by name, and by nobody but the server."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from service.environment import UnknownVariableError, check_variables, service_ports
from service.settings import Settings
from tests.service import test_cli

sid, assert_user_error = test_cli.sid, test_cli.assert_user_error

# What Kubernetes puts into each pod of a namespace that has a Service named sid-gateway.
LINKS = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "SID_GATEWAY_SERVICE_HOST": "10.0.0.2",
    "SID_GATEWAY_SERVICE_PORT": "80",
    "SID_GATEWAY_SERVICE_PORT_HTTP": "80",
    "SID_GATEWAY_PORT": "tcp://10.0.0.2:80",
    "SID_GATEWAY_PORT_80_TCP": "tcp://10.0.0.2:80",
    "SID_GATEWAY_PORT_80_TCP_PROTO": "tcp",
}


@pytest.mark.parametrize("command", ["serve", "triton"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("SID_KEY", "SID_KEY is the client's; the server reads SID_KEYS: unset SID_KEY"),
        ("SID_LOG_FROMAT", "SID_LOG_FROMAT: the server has no such setting; did you mean SID_LOG_"),
        ("SID_MODEL", "did you mean SID_MODELS?"),
        ("sid_kyes", "did you mean SID_KEYS?"),
        ("SID_XYZZY", "SID_XYZZY: the server has no such setting; unset it"),
    ],
)
def test_a_server_refuses_what_it_would_ignore(sid, monkeypatch, command, name, says):
    monkeypatch.setenv(name, "keys.txt")
    assert_user_error(sid(command, "--port", 0), says)


def test_all_of_them_are_named_in_one_line():
    with pytest.raises(UnknownVariableError, match=r"SID_A.*; SID_B"):
        check_variables({"SID_A": "", "SID_B": ""}, Settings.model_fields)


def test_settings_in_any_case_and_what_kubernetes_adds_are_no_mistakes():
    settings = {f"SID_{name.upper()}": "" for name in Settings.model_fields}
    check_variables(settings | {"sid_port": "", "SIDE": "", "PATH": ""}, Settings.model_fields)
    check_variables(LINKS, Settings.model_fields)
    with pytest.raises(UnknownVariableError, match="SID_GATEWAYS: "):
        check_variables(LINKS | {"SID_GATEWAYS": ""}, Settings.model_fields)
    with pytest.raises(UnknownVariableError, match="SID_GATEWAY_PORT: "):
        check_variables({"SID_GATEWAY_PORT": ""}, Settings.model_fields)


@pytest.mark.parametrize("variable", ["SID_PORT", "SID_METRICS_PORT"])
@pytest.mark.usefixtures("models")
def test_a_service_named_like_a_setting_sets_nothing(sid, monkeypatch, variable):
    monkeypatch.setenv(variable, "tcp://10.0.0.2:80")
    assert_user_error(sid("models"), f"{variable}: ")  # not in Kubernetes: a slip of the pen
    service = variable.removesuffix("_PORT")
    for name, value in {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_HOST": "10.0.0.2",
    }.items():
        monkeypatch.setenv(name, value)
    check_variables(os.environ, Settings.model_fields)
    assert service_ports(os.environ, Settings.model_fields) == [variable]
    assert sid("models").status == 0
    monkeypatch.setenv(variable, "9000")
    assert service_ports(os.environ, Settings.model_fields) == []


@pytest.mark.usefixtures("models")
def test_the_clients_commands_read_their_own(sid, monkeypatch):
    monkeypatch.setenv("SID_KEY", "secret")
    assert sid("generate").status == 0
    assert sid("models").status == 0


@pytest.mark.parametrize("module", ["service.cli", "distill.cli"])
def test_a_command_tells_its_version(module):
    name = {"service.cli": "sid", "distill.cli": "sid-distill"}[module]
    code = f"import sys; from {module} import main; sys.argv = [{name!r}, '--version']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{name} {version('sid-serve')}\n"
