"""Nothing is lost: kills during a write, damaged files, foreign files."""

import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from distill.checkpoints import load_network, load_state, save_network, save_state
from distill.errors import UserError
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig

TINY = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0,
)  # fmt: skip

METADATA = {"role": "teacher", "classes": ["a", "b"], "images_seen": 7}
STATE = {"settings": "{}", "images_seen": 1, "training": {"w": torch.zeros(50_000)}}
WRITER = """
import sys, torch
from pathlib import Path
from distill.checkpoints import save_state
for count in range(10**6):
    weights = {"w": torch.full((4_000_000,), count)}
    save_state(Path(sys.argv[1]), {"settings": "{}", "images_seen": count, "training": weights})
    print(count, flush=True)
"""


def test_a_kill_during_a_checkpoint_leaves_the_previous_one_whole(tmp_path):
    path = tmp_path / "state.pt"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        deadline = time.monotonic() + 60
        partial = tmp_path / ".state.pt.partial"
        while time.monotonic() < deadline:  # stop it in the middle of a write, then kill it
            writer.send_signal(signal.SIGSTOP)
            if partial.exists():
                break
            writer.send_signal(signal.SIGCONT)
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
    assert partial.exists(), "no write was caught in the middle"
    state = load_state(path)
    assert (state["training"]["w"] == state["images_seen"]).all()


def test_a_network_survives_its_file(tmp_path):
    torch.manual_seed(0)
    network = Denoiser(TINY).eval()
    save_network(tmp_path / "n.safetensors", network, METADATA | {"data": "bars"})
    again, metadata = load_network(tmp_path / "n.safetensors")
    assert metadata == METADATA | {"data": "bars"}
    assert again.config == TINY
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.eye(2)
    assert torch.equal(again(x, sigma, labels), network(x, sigma, labels))


def test_a_network_with_weights_that_are_not_finite_is_refused(tmp_path):
    network = Denoiser(TINY)
    with torch.no_grad():
        next(network.parameters())[0] = float("nan")
    save_network(tmp_path / "network.safetensors", network, METADATA)
    with pytest.raises(UserError, match="holds weights that are not finite"):
        load_network(tmp_path / "network.safetensors")


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "n.safetensors"
    with pytest.raises(UserError, match=r"no network at .*n.safetensors"):
        load_network(path)
    save_network(path, Denoiser(TINY), METADATA)
    whole = path.read_bytes()
    for damage in (b"", b"garbage" * 100, whole[: len(whole) // 2]):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"n.safetensors is not a whole network"):
            load_network(path)
    save_network(path, Denoiser(TINY), METADATA | {"classes": ["a"]})
    with pytest.raises(UserError, match="names 1 classes, its network has 2"):
        load_network(path)
    (tmp_path / "state.pt").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"state.pt is damaged.*delete it"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("length", [0, 1, 100, 1000, 5000, 20_000, 60_000, 100_000, -30, -1])
def test_a_state_that_was_cut_short_is_named_whatever_its_length(length, tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"state.pt is damaged.*: delete it to start anew"):
        load_state(path)


def test_a_state_with_another_byte_is_damaged(tmp_path):
    """torch reads one without a word: it does not look at the checksums."""
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"state.pt is damaged.*checksum"):
        load_state(path)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), {"settings": "{}"}, STATE | {"training": 3}, STATE | {"settings": "[]"}],
)
def test_what_is_no_state_is_of_another_version(content, tmp_path):
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state.pt is of another version"):
        load_state(tmp_path / "state.pt")


def test_a_state_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(UserError, match=r"state.pt cannot be read: Is a directory"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("kind", ["state", "network"])
def test_a_full_disk_names_the_file_and_leaves_the_one_before(kind, tmp_path):
    """A limit on the size of a file stands for the disk: write() fails in the same place."""

    def write(path):
        if kind == "state":
            save_state(path, STATE)
        else:
            save_network(path, Denoiser(TINY), METADATA)

    path = tmp_path / kind
    write(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == [kind]
    assert path.read_bytes() == before
