"""A run that ends early: with its whole cooldown, in all processes, and as if never interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.checkpoints import load_state
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training import loop
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext, join_process_group
from distill.training.early_end import EarlyEnd
from distill.training.loop import train

NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.0,
)  # fmt: skip
SID = SidConfig(
    total_images=128, cooldown=16, batch=8, lr=1e-3, ema_halflife=20, checkpoint_every=10**6,
    stop_gain=0.1,
)  # fmt: skip
MARKS = np.array([16, 24, 32, 48])
METADATA = {"role": "generator", "classes": ["a", "b"]}


def make(context=None, **changes):
    torch.manual_seed(0)
    method = Sid(SID.model_copy(update=changes))
    context = context or DistributedContext(torch.device("cpu"))
    return Distillation(method, Denoiser(NETWORK), context)


def enough_at(images, asked=None):
    """A rule that is content from so many images on."""

    def rule(seen):
        if asked is not None:
            asked.append(seen)
        return "it is enough" if seen >= images else None

    return EarlyEnd(rule, SID.cooldown)


def run(folder, training, early, interrupt_at=None):
    """Train, in the middle of which SIGTERM may come; the images seen."""

    def evaluate(_network):
        seen.append(None)
        if len(seen) == interrupt_at:
            signal.raise_signal(signal.SIGTERM)
        return {"distance": 1.0, "rate_share": training.rate_share}

    seen = []
    return train(training, folder, METADATA, evaluate, progress=False, early=early)


def points(folder):
    lines = (folder / "curve.jsonl").read_text().splitlines()
    return [(p["images_seen"], p["rate_share"]) for p in map(json.loads, lines)]


def assert_alike(a, b):
    """Two states, to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_alike(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture(autouse=True, scope="module")
def few_images():
    """A run is measured from a few images on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "MARKS", MARKS)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted; its rule was content at 24 images."""
    folder = tmp_path_factory.mktemp("whole")
    asked = []
    assert run(folder, make(), enough_at(22, asked)) == 40
    assert asked == [16, 24], "not in the cooldown"
    return folder


def test_the_cooldown_follows_and_the_run_ends_after_it(whole):
    # A point's rate is that of the step before it.
    assert points(whole) == [(16, 1.0), (24, 1.0), (32, 1.0), (40, 0.5)]
    state = load_state(whole / "state.pt")
    assert (state["images_seen"], state["early_end"]) == (
        40,
        {"since": 24, "why": "it is enough"},
    )
    assert json.loads(state["settings"])["stop_gain"] == 0.1


@pytest.mark.parametrize("interrupt_at", [2, 3])
def test_an_interrupted_run_ends_alike_to_the_bit(interrupt_at, whole, tmp_path):
    """At the point where the rule decides, and in the cooldown."""
    stopped_at = run(tmp_path, make(), enough_at(22), interrupt_at)
    assert stopped_at == {2: 24, 3: 32}[interrupt_at]
    early = enough_at(22)
    training = make()
    assert run(tmp_path, training, early) == training.end == 40
    assert early.why == "it is enough"
    assert_alike(load_state(tmp_path / "state.pt"), load_state(whole / "state.pt"))
    assert points(tmp_path) == points(whole)
    before = (tmp_path / "curve.jsonl").read_bytes()
    assert run(tmp_path, make(), enough_at(0)) == 40, "and nothing more happens"
    assert (tmp_path / "curve.jsonl").read_bytes() == before


def test_without_a_cooldown_it_ends_at_once_and_is_measured_once(tmp_path):
    early = enough_at(22)
    early.cooldown = 0
    assert run(tmp_path, make(cooldown=0), early) == 24
    assert points(tmp_path) == [(16, 1.0), (24, 1.0)]


def test_the_rule_has_no_say_once_the_ordinary_cooldown_has_begun(tmp_path):
    asked = []
    assert run(tmp_path, make(total_images=32), enough_at(0, asked)) == 32
    assert asked == []


def test_a_run_may_go_on_by_another_rule(whole, tmp_path, capsys):
    folder = tmp_path / "longer"
    folder.mkdir()
    for name in ("state.pt", "curve.jsonl"):
        (folder / name).write_bytes((whole / name).read_bytes())
    training = make(total_images=48, cooldown=0, stop_gain=None)
    assert run(folder, training, None) == 48
    assert points(folder)[-1] == (48, 1.0)
    assert "was to end early, since 24 images (it is enough)" in capsys.readouterr().err
    assert "early_end" not in load_state(folder / "state.pt")


def main(folder):
    """One of several processes; only the first may be asked."""
    loop.MARKS = MARKS
    with join_process_group(torch.device("cpu")) as context:
        asked = []
        early = enough_at(22, asked)
        training = make(context, microbatch=4)
        seen = run(Path(folder), training, early)
        print(f"ended: {context.rank}, {seen}, {asked}", flush=True)


@pytest.mark.long
def test_all_processes_end_together(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, __file__, str(tmp_path)],
        capture_output=True, text=True, timeout=250, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = sorted(line for line in done.stdout.splitlines() if line.startswith("ended"))
    assert ended == ["ended: 0, 40, [16, 24]", "ended: 1, 40, []"]


if __name__ == "__main__":
    main(sys.argv[1])
