"""The command line of the offline half: help that explains, errors of one line, a whole way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from distill import cli
from distill.cli import app
from tests.distill.tiny_recipe import tiny_recipe

BIN = Path(sys.executable).parent


RECIPE = tiny_recipe(
    {"dropout": 0.0},
    teacher={"total_images": 640, "batch": 32},
    sid={"total_images": 640, "batch": 32, "lr": 1e-4},
)


def sid_distill(*arguments, check=True):
    """Run the installed command as a person would."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    result = subprocess.run(
        [BIN / "sid-distill", *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=250, check=False,
    )  # fmt: skip
    if check:
        assert result.returncode == 0, result.stderr
    return result


def test_every_command_and_option_is_explained():
    group = get_command(app)
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize("asks", [lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)])
def test_too_little_memory_is_said_in_one_line(asks, monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", asks)
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr().err
    assert told.startswith("error: not enough memory (")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["teacher", "--out", "run", "--data", "nowhere"], "dataset-fashion-mnist"),
        (["teacher", "--out", "run", "--recipe", "nonsense"], "no recipe 'nonsense'"),
        (["run", "--out", "run", "--teacher", "missing.safetensors"], "no network at"),
        (["evaluate", "missing.safetensors"], "no network at"),
        (["publish", "missing.safetensors", "--name", "x"], "no network at"),
        (["export", "broken.safetensors", "-o", "m.onnx"], "broken.safetensors is not a whole"),
        (["analyze", "run"], "no run at run: expected the folder"),
        (["features", "--out", "f.safetensors", "--data", "nowhere"], "dataset-fashion-mnist"),
        (["teacher", "--out", "run", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["teacher", "--out", "run", "--recipe", "bad.toml"], "network: ddpmpp with 9 channels"),
        (["export", "/proc", "-o", "m.onnx"], "no network at /proc"),
        (["export", "two\nlines", "-o", "m.onnx"], "no network at two lines"),
    ],
)
def test_a_users_mistake_ends_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "share_processors", lambda: None)  # this process has its share
    monkeypatch.setattr(sys, "argv", ["sid-distill", *arguments])
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "bad.toml").write_text(RECIPE.replace("model_channels = 8", "model_channels = 9"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert_one_line(capsys.readouterr().err, said)


@pytest.mark.slow
def test_the_installed_command_says_a_mistake_in_one_line_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = sid_distill("run", "--out", "run", "--teacher", "missing.safetensors", check=False)
    assert result.returncode == 2
    assert_one_line(result.stderr, "no network at")


def assert_one_line(told, said):
    assert said in told
    assert told.count("\n") == 1, told
    assert told.startswith("error: ")
