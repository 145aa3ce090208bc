"""The command line of the offline half: help that explains, errors of one line, a whole way."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from distill.cli import app

BIN = Path(sys.executable).parent


RECIPE = """
description = "tiny"
[network]
img_resolution = 8
img_channels = 1
model_channels = 8
channel_mult = [1]
num_blocks = 1
attn_resolutions = []
dropout = 0.0
[teacher]
total_images = 640
batch = 32
lr = 1e-3
ema_halflife = 500
checkpoint_every = 500
[sid]
total_images = 640
batch = 32
lr = 1e-4
ema_halflife = 500
checkpoint_every = 500
"""


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
        (["teacher", "--out", "run", "--recipe", "bad.toml"], "network: 9 x 1 channels cannot be"),
        (["export", "/proc", "-o", "m.onnx"], "no network at /proc"),
    ],
)
def test_a_users_mistake_ends_in_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "bad.toml").write_text(RECIPE.replace("model_channels = 8", "model_channels = 9"))
    result = sid_distill(*arguments, check=False)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")


def test_from_a_folder_of_pictures_to_a_served_picture(tmp_path):
    """One's own data, every command in turn, and `sid generate` on what they published."""
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(130):
            pixels = rng.integers(0, 60, (8, 8, 3), np.uint8)
            pixels[:, :4] += 150 * (name == "left")
            pixels[:, 4:] += 150 * (name == "right")
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    recipe, data = tmp_path / "tiny.toml", tmp_path / "data"
    recipe.write_text(RECIPE)
    teacher, run, models = tmp_path / "teacher", tmp_path / "run", tmp_path / "models"
    features = tmp_path / "pixels.safetensors"
    network = "network.safetensors"

    sid_distill("features", "--data", data, "--resolution", 8, "--out", features, "--epochs", 2)
    sid_distill("teacher", "--recipe", recipe, "--data", data, "--out", teacher)
    sid_distill(
        "run", "--recipe", recipe, "--teacher", teacher / network, "--out", run,
        "--features", features,
    )  # fmt: skip
    assert (run / "curve.jsonl").exists()
    for file in (run / network, teacher / network):
        sid_distill("evaluate", file, "--features", features, "--images", 256)
    sid_distill("export", run / network, "-o", tmp_path / "model.onnx")
    sid_distill(
        "publish", run / network, "--teacher", teacher / network, "--name", "halves",
        "--models", models,
    )  # fmt: skip
    picture = tmp_path / "left.png"
    subprocess.run(
        [BIN / "sid", "generate", "--models", models, "--class-label", "left", "--seed", "7",
         "-o", picture],
        check=True, timeout=60,
    )  # fmt: skip
    with Image.open(picture) as image:
        assert (image.size, image.mode) == ((8, 8), "RGB")
