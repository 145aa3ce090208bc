"""A run's folder: a refused run changes nothing in it, and a lock is not taken for another's."""

import errno
import fcntl
import json
import os

import pytest
import torch

from distill.checkpoints import save_network
from distill.commands.run import run
from distill.errors import UserError
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.loop import train

NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.0,
)  # fmt: skip
SID = SidConfig(total_images=8, batch=4, lr=1e-3, ema_halflife=40, checkpoint_every=8)


def make(**changes):
    torch.manual_seed(0)
    method = Sid(SID.model_copy(update=changes))
    return Distillation(method, Denoiser(NETWORK), DistributedContext(torch.device("cpu")))


def contents(folder):
    """Every file's name, bytes and time of change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(file, file.read_bytes(), file.stat().st_mtime_ns) for file in files]


@pytest.mark.parametrize("why", ["other settings", "another's lock"])
def test_a_refused_run_changes_nothing(why, tmp_path, monkeypatch):
    # It would rule all of this process, and other tests look at memory.
    monkeypatch.setattr("distill.commands.run.keep_freed_memory", lambda: None)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'description = "tiny"\n[network]\nimg_resolution = 8\nimg_channels = 1\n'
        "label_dim = 2\nmodel_channels = 8\nchannel_mult = [1]\nnum_blocks = 1\n"
        "attn_resolutions = []\n[sid]\ntotal_images = 8\nbatch = 4\nlr = 1e-3\n"
        "ema_halflife = 40\ncheckpoint_every = 8\n"
    )
    for number, name in enumerate(["first", "second"]):
        torch.manual_seed(number)
        metadata = {"role": "teacher", "classes": ["a", "b"]}
        save_network(tmp_path / f"{name}.safetensors", Denoiser(NETWORK), metadata)

    def start(teacher):
        options = {"recipe": str(recipe), "features": "none", "device": "cpu"}
        run(tmp_path / "out", tmp_path / f"{teacher}.safetensors", **options)

    start("first")
    before = contents(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"] == str(recipe)
    if why == "other settings":
        with pytest.raises(UserError, match="holds a run with another teacher: resume it"):
            start("second")
    else:
        with (tmp_path / "out" / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UserError, match="another process trains in"):
                start("second")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_trained_on(code, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert train(make(), tmp_path, {}, progress=False) == 8
    said = capsys.readouterr().err
    assert f"the file system of {tmp_path} has no locks ({os.strerror(code)})" in said


def test_a_lock_that_fails_otherwise_is_not_another_process(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"\.lock cannot be locked: Input/output error"):
        train(make(), tmp_path, {}, progress=False)


def test_a_run_that_ends_at_a_point_of_its_curve_is_measured_there_once(tmp_path):
    training = make(total_images=512, batch=256, checkpoint_every=512)  # the first point: 500
    metadata = {"role": "generator", "classes": ["a", "b"]}
    train(training, tmp_path, metadata, lambda _: {"distance": 1.0}, progress=False)
    curve = (tmp_path / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_seen"] for line in curve] == [512]
