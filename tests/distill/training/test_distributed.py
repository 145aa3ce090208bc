"""Several processes, by torchrun over gloo: the same run as one, stopped and resumed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.checkpoints import load_network, load_state, save_network
from distill.errors import UserError
from distill.methods.sid import SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distributed import DistributedContext
from distill.training.microbatches import local_microbatches
from tests.distill.command_line import sid_distill

BIN = Path(sys.executable).parent
RECIPE = """
description = "tiny"
[network]
img_resolution = 8
img_channels = 1
attn_resolutions = []
[sid]
total_images = 400
batch = 8
microbatch = 2
lr = 3e-4
augment = 0.2
ema_halflife = 500
checkpoint_every = 1_000_000
"""


@pytest.fixture
def arguments(tmp_path):
    """A distillation's command line, but for the folder to write."""
    torch.manual_seed(3)
    config = EdmConfig(
        img_resolution=8, img_channels=1, label_dim=2, augment_dim=9, model_channels=8,
        channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.2,
    )  # fmt: skip
    network = Denoiser(config)
    teacher = tmp_path / "teacher.safetensors"
    save_network(teacher, network, {"role": "teacher", "classes": ["a", "b"], "images_seen": 0})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    return ["run", "--recipe", recipe, "--teacher", teacher, "--features", "none", "--out"]


def start(processes, *arguments):
    """Start sid-distill by torchrun, or alone, the way a person would."""
    command = [BIN / "sid-distill", *arguments]
    if processes > 1:
        torchrun = [BIN / "torchrun", "--standalone", "--nproc-per-node", processes, "--no-python"]
        command = [*torchrun, *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=250)
    return process.returncode, output


def run(processes, *arguments):
    code, output = finish(start(processes, *arguments))
    assert code == 0, output
    return output


def curves(folder):
    """The losses and gradient norms that TensorBoard shows."""
    events = EventAccumulator(str(folder)).Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag != "images per second"]
    return {name: [point.value for point in events.Scalars(name)] for name in names}


def weights(folder):
    return load_state(folder / "state.pt")["training"]["generator"]


@pytest.mark.slow
@pytest.mark.usefixtures("memory_stays_as_it_is")
def test_two_processes_run_the_same_curve_as_one(arguments, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    sid_distill(*arguments, one)
    output = run(2, *arguments, two)
    assert output.count("400 images:") == 1, "only one process talks"
    expected, measured = curves(one), curves(two)
    assert {"loss/fake_score", "loss/generator", "score gap", "gradient/generator"} <= set(expected)
    for name, values in expected.items():
        assert measured[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-4)
    assert load_network(two / "network.safetensors")[1]["images_seen"] == 400


@pytest.mark.long
def test_a_sharded_network_learns_the_same(arguments, tmp_path):
    """Without dropout, whose draws follow the memory layout, which sharding changes."""
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    short = ("--images", 80, "--dropout", 0)
    run(1, *arguments, whole, *short)
    run(2, *arguments, sharded, *short, "--shard")
    torch.testing.assert_close(weights(sharded), weights(whole), rtol=0, atol=1e-4)
    output = run(2, *arguments, sharded, "--images", 96, "--dropout", 0, "--shard")
    assert "96 images:" in output, "a sharded run resumes too"


@pytest.mark.long
def test_a_discriminator_learns_the_same_on_two_processes(arguments, tmp_path):
    """Two passes through one encoder before a backward pass, and real images by micro-batch."""
    for number, name in enumerate("ab"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            image = Image.new("L", (8, 8), 40 + 100 * number + 20 * i)
            image.save(tmp_path / "images" / name / f"{i}.png")
    recipe = arguments[arguments.index("--recipe") + 1]
    recipe.write_text(RECIPE.replace("[sid]", "[sida]\nfrozen_images = 8\nsid_images = 8"))
    options = ("--data", tmp_path / "images", "--images", 48, "--dropout", 0)
    run(1, *arguments, tmp_path / "one", *options)
    for name, spread in (("copied", ()), ("sharded", ("--shard",))):
        output = run(2, *arguments, tmp_path / name, *options, *spread)
        assert output.count("6 grey images") == 1, "only one process talks"
        torch.testing.assert_close(
            weights(tmp_path / name), weights(tmp_path / "one"), rtol=0, atol=1e-4
        )


@pytest.mark.long
def test_torchrun_is_stopped_and_resumes_to_the_bit(arguments, tmp_path):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    stopped = start(2, *arguments, parts, "--images", 1_000_000)
    told = ""
    while not re.search(r"[1-9][0-9.]*k?/1\.00M \[", told):  # images that its progress bar counts
        line = stopped.stdout.readline()
        assert line, told
        told += line
    stopped.send_signal(signal.SIGTERM)
    _, output = finish(stopped)
    assert "the same command goes on from there" in output
    seen = load_state(parts / "state.pt")["images_seen"]
    assert 0 < seen < 1_000_000
    for folder in (parts, whole):
        run(2, *arguments, folder, "--images", seen + 80)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=0)


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    config = SidConfig(total_images=1, checkpoint_every=1, batch=96, microbatch=32)
    cpu = torch.device("cpu")
    assert list(local_microbatches(config, DistributedContext(cpu, rank=1, size=3))) == [1]
    with pytest.raises(UserError, match="32 cannot be divided among 2 processes: choose"):
        local_microbatches(config, DistributedContext(cpu, rank=0, size=2))


@pytest.mark.usefixtures("memory_stays_as_it_is")
def test_sharding_without_torchrun_is_refused(arguments, tmp_path):
    with pytest.raises(
        UserError, match=r"^--shard spreads a network over .*: start it by torchrun$"
    ):
        sid_distill(*arguments, tmp_path / "out", "--shard")
