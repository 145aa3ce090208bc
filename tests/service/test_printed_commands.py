"""Whoever pastes a command that the server printed gets what it promised."""

import ast
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

import service
from service.cli import app
from service.http.security import new_key
from tests.bundles import write_bundle
from tests.service.test_process import serving

ROOT = Path(__file__).parents[2]
TEXTS = [
    node.value
    for file in Path(service.__file__).parent.rglob("*.py")
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "hostile class",
        "keys",
        "IPv6",
        *(pytest.param(case, marks=pytest.mark.long) for case in ("no classes", "no default")),
    ],
)
def test_the_request_that_it_prints_at_the_start_draws(tmp_path, case):
    models, options, environment = tmp_path / "models", [], {}
    classes = {"hostile class": ["it's $HOME", 'Ä "b" `c` \\'], "no classes": []}.get(case)
    write_bundle(models, classes=classes)
    if case == "no default":
        write_bundle(models, "other")
    if case == "keys":
        made = new_key("alice")
        (tmp_path / "keys").write_text(made.line)
        environment = {"SID_KEYS": str(tmp_path / "keys"), "SID_KEY": made.secret}
    if case == "IPv6":
        if not _has_ipv6():
            pytest.skip("there is no IPv6 here")
        options = ["--host", "::1"]
    sent = {name: value for name, value in environment.items() if name != "SID_KEY"}
    with serving(models, *options, log=tmp_path / "log", **sent) as (process, _):
        printed = process.stdout.readline().strip()
        done = subprocess.run(
            ["sh", "-c", printed],
            cwd=tmp_path,
            env=os.environ | environment | {"no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert printed.startswith("curl ")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "picture.png"
    with Image.open(file) as image:  # and not a problem as JSON
        assert image.format == "PNG"
    assert "[" not in printed or "'http://[::1]:" in printed, "zsh takes brackets for a pattern"


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_whatever_it_says_of_a_command_names_one_that_is_there():
    """In every text of the online half: `sid NAME --option`."""
    commands = get_command(app).commands
    named = [
        rest
        for text in TEXTS
        for rest in re.findall(r"(?:^|[`'( ])sid ((?:[a-z]+ )?[a-z]+ --?[a-z-]+|[a-z]+(?=`))", text)
    ]
    assert len(named) >= 3
    for words in map(str.split, named):
        options = {name for option in commands[words[0]].params for name in option.opts}
        assert {one for one in words if one.startswith("--")} <= {*options, "--help"}, words


def test_the_targets_that_it_names_are_there_and_run_what_they_promise():
    named = {target for text in TEXTS for target in re.findall(r"say make ([a-z-]+)", text)}
    assert "run-triton" in named
    for target in named:
        shown = subprocess.run(
            ["make", "--just-print", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        if target == "run-triton":
            assert re.search(r"/sid triton\b", shown.stdout)
