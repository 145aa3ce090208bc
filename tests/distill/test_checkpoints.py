"""Nothing is lost: kills during a write, damaged files, foreign files."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from distill.checkpoints import load_network, load_state, save_network
from distill.errors import UserError
from distill.networks import Denoiser, NetworkConfig

TINY = NetworkConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0,
)  # fmt: skip

FACTS = {"role": "teacher", "classes": ["a", "b"], "images_seen": 7}
WRITER = """
import sys, torch
from pathlib import Path
from distill.checkpoints import save_state
for count in range(10**6):
    weights = torch.full((4_000_000,), count)
    save_state(Path(sys.argv[1]), {"settings": "", "images_seen": count, "training": weights})
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
    assert (state["training"] == state["images_seen"]).all()


def test_a_network_survives_its_file(tmp_path):
    torch.manual_seed(0)
    network = Denoiser(TINY).eval()
    save_network(tmp_path / "n.safetensors", network, FACTS | {"data": "bars"})
    again, facts = load_network(tmp_path / "n.safetensors")
    assert facts == FACTS | {"data": "bars"}
    assert again.config == TINY
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.eye(2)
    assert torch.equal(again(x, sigma, labels), network(x, sigma, labels))


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "n.safetensors"
    with pytest.raises(UserError, match=r"no network at .*n.safetensors"):
        load_network(path)
    save_network(path, Denoiser(TINY), FACTS)
    whole = path.read_bytes()
    for damage in (b"", b"garbage" * 100, whole[: len(whole) // 2]):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"n.safetensors is not a whole network"):
            load_network(path)
    save_network(path, Denoiser(TINY), FACTS | {"classes": ["a"]})
    with pytest.raises(UserError, match="names 1 classes, its network has 2"):
        load_network(path)
    (tmp_path / "state.pt").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"state.pt is damaged.*delete it"):
        load_state(tmp_path / "state.pt")
